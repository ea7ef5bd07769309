use std::time::Instant;

use super::*;

use component_base::events::{RecordedEvent, Recorder};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use runtime::fake::FakeRuntime;
use tokio::sync::mpsc::UnboundedReceiver;
use verification::Verification;

#[test]
fn default_tags() {
    assert_eq!(
        apply_default_image_tag("busybox").unwrap(),
        "busybox:latest"
    );
    assert_eq!(
        apply_default_image_tag("registry.k8s.io/pause:3.10").unwrap(),
        "registry.k8s.io/pause:3.10"
    );
    assert!(apply_default_image_tag("UPPER//bad:::x").is_err());
}

#[test]
fn what_happens_to_a_request() {
    for (policy, present, accessible, expect) in [
        ("Always", false, false, Next::Pull),
        ("Always", true, true, Next::Pull),
        ("IfNotPresent", false, false, Next::Pull),
        ("IfNotPresent", true, false, Next::Pull),
        ("IfNotPresent", true, true, Next::Use),
        ("Never", false, false, Next::Refuse),
        ("Never", true, false, Next::Refuse),
        ("Never", true, true, Next::Use),
    ] {
        let asked = || {
            assert!(present, "{policy}: what is not here is not asked about");
            accessible
        };
        assert_eq!(
            next(policy, present, asked),
            expect,
            "{policy} {present} {accessible}"
        );
    }
}

const PRIVATE: &str = "r.io/private/app:1";

struct Node {
    fake: FakeRuntime,
    dir: tempfile::TempDir,
    manager: ImageManager,
    events: UnboundedReceiver<RecordedEvent>,
}

fn manager(
    fake: &FakeRuntime,
    dir: &std::path::Path,
    verification: Verification,
) -> (ImageManager, UnboundedReceiver<RecordedEvent>) {
    let (recorder, events) = Recorder::fake();
    let pulls = PullManager::open(dir, 10, verification).unwrap();
    let manager = ImageManager::new(
        Arc::new(fake.clone()),
        KubeletRecorder::new(recorder, "node"),
        Arc::new(Keyring::default()),
        CredentialProviders::default(),
        Some(Arc::new(pulls)),
        &KubeletConfiguration::default(),
        Clock::real(),
    );
    (manager, events)
}

fn auth(password: &str) -> runtime::api::ImageAuth {
    runtime::api::ImageAuth {
        username: "u".into(),
        password: password.into(),
        ..Default::default()
    }
}

fn node(verification: Verification) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeRuntime::new();
    fake.set_private(PRIVATE, auth("right"));
    let (manager, events) = manager(&fake, dir.path(), verification);
    Node {
        fake,
        dir,
        manager,
        events,
    }
}

fn pull_secret(namespace: &str, password: &str) -> Arc<Secret> {
    let json = format!(r#"{{"auths":{{"r.io":{{"username":"u","password":"{password}"}}}}}}"#);
    Arc::new(Secret {
        metadata: ObjectMeta {
            name: Some("pull".into()),
            namespace: Some(namespace.into()),
            uid: Some(format!("{namespace}-uid")),
            ..Default::default()
        },
        type_: Some("kubernetes.io/dockerconfigjson".into()),
        data: Some(
            [(
                ".dockerconfigjson".to_owned(),
                k8s_openapi::ByteString(json.into_bytes()),
            )]
            .into(),
        ),
        ..Default::default()
    })
}

impl Node {
    async fn ask(
        &mut self,
        pod: &str,
        image: &str,
        policy: &str,
        secrets: &[Arc<Secret>],
    ) -> Result<ImageStatus, ImageFailure> {
        while self.events.try_recv().is_ok() {}
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(pod.into()),
                namespace: Some("ns".into()),
                uid: Some(format!("{pod}-uid")),
                ..Default::default()
            },
            ..Default::default()
        };
        let cancel = CancellationToken::new();
        self.manager
            .ensure_image_exists(&pod, "c", image, Some(policy), secrets, &cancel)
            .await
    }

    fn last_event(&mut self) -> String {
        let mut last = String::new();
        while let Ok(event) = self.events.try_recv() {
            last = format!("{} {}", event.reason, event.message);
        }
        last
    }

    /// The kubelet starts anew.
    fn restart(&mut self) {
        (self.manager, self.events) =
            manager(&self.fake, self.dir.path(), Verification::NeverPreloaded);
    }
}

const PRESENT: &str = "Pulled Container image \"r.io/private/app:1\" already present on machine and can be accessed by the pod";

/// The whole of the case: an owner, thieves of every policy, the same credential elsewhere; before and after a restart.
#[tokio::test]
async fn a_private_image_is_not_for_everybody() {
    let mut node = node(Verification::NeverPreloaded);
    let owner = [pull_secret("owner", "right")];
    node.ask("owner", PRIVATE, "IfNotPresent", &owner)
        .await
        .unwrap();
    for round in ["before", "after"] {
        let thief = format!("thief-{round}");
        let refused = node.ask(&thief, PRIVATE, "IfNotPresent", &[]).await;
        assert_eq!(refused.unwrap_err().reason, "ErrImagePull", "{round}");
        let refused = node.ask(&thief, PRIVATE, "IfNotPresent", &[]).await;
        assert_eq!(refused.unwrap_err().reason, "ImagePullBackOff", "{round}");
        let wrong = [pull_secret("thief", "wrong")];
        let refused = node
            .ask(&format!("wrong-{round}"), PRIVATE, "IfNotPresent", &wrong)
            .await;
        assert_eq!(refused.unwrap_err().reason, "ErrImagePull", "{round}");
        let refused = node.ask(&thief, PRIVATE, "Never", &[]).await.unwrap_err();
        assert_eq!(refused.reason, "ErrImageNeverPull");
        assert_eq!(
            refused.message,
            "Container image \"r.io/private/app:1\" is not present with pull policy of Never"
        );
        assert_eq!(
            node.last_event(),
            format!("ErrImageNeverPull {}", refused.message)
        );
        for (policy, namespace) in [("IfNotPresent", "elsewhere"), ("Never", "owner")] {
            let secret = [pull_secret(namespace, "right")];
            node.ask("friend", PRIVATE, policy, &secret).await.unwrap();
            assert_eq!(node.last_event(), PRESENT);
        }
        node.restart();
    }
}

#[tokio::test]
async fn two_pods_at_once_do_not_share_the_answer() {
    let node = node(Verification::NeverPreloaded);
    let secrets = [pull_secret("owner", "right")];
    let pod = |name: &str| Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(name.into()),
            ..Default::default()
        },
        ..Default::default()
    };
    let (owner, thief) = (pod("owner"), pod("thief"));
    let cancel = CancellationToken::new();
    let (with, without) = tokio::join!(
        node.manager
            .ensure_image_exists(&owner, "c", PRIVATE, None, &secrets, &cancel),
        node.manager
            .ensure_image_exists(&thief, "c", PRIVATE, None, &[], &cancel),
    );
    with.unwrap();
    assert_eq!(without.unwrap_err().reason, "ErrImagePull");
}

#[tokio::test]
async fn public_and_preloaded_images_are_everybodys() {
    let mut node = node(Verification::NeverPreloaded);
    node.fake.pull_image("r.io/preloaded:1", &[]).await.unwrap();
    for policy in ["Never", "IfNotPresent"] {
        node.ask("a", "r.io/preloaded:1", policy, &[])
            .await
            .unwrap();
    }
    node.ask("a", "r.io/public:1", "IfNotPresent", &[])
        .await
        .unwrap();
    node.ask("b", "r.io/public:1", "Never", &[]).await.unwrap();
    let calls = node.fake.take_calls();
    let pulls = |image: &str| calls.iter().filter(|c| c.contains(image)).count();
    assert_eq!(pulls("r.io/public:1"), 1);
    assert_eq!(pulls("r.io/preloaded:1"), 1);
}

#[tokio::test]
async fn every_credential_is_tried_and_told() {
    let mut node = node(Verification::NeverPreloaded);
    let both = [pull_secret("a", "wrong"), pull_secret("b", "right")];
    node.ask("p", PRIVATE, "Always", &both).await.unwrap();
    // The one that opened it is noted, not the other.
    let refused = node.ask("q", PRIVATE, "Never", &both[..1]).await;
    assert!(refused.is_err());
    node.ask("r", PRIVATE, "Never", &both[1..]).await.unwrap();
    // No fall back to anonymous: the credentials were asked about.
    node.ask("s", PRIVATE, "Always", &both[..1])
        .await
        .unwrap_err();
}

#[tokio::test]
async fn nothing_is_pulled_that_cannot_be_noted() {
    let mut node = node(Verification::NeverPreloaded);
    let pulling = node.dir.path().join("image_manager/pulling");
    std::fs::remove_dir(&pulling).unwrap();
    std::fs::write(&pulling, "").unwrap();
    let refused = node
        .ask("p", "r.io/public:1", "IfNotPresent", &[])
        .await
        .unwrap_err();
    assert!(
        refused.message.starts_with(
            "Failed to record image pull intent for container image \"r.io/public:1\""
        ),
        "{}",
        refused.message
    );
    assert!(node.fake.list_images().await.unwrap().is_empty());
}

/// A plugin that takes the pods' tokens opens an image for its account; one that takes none opens it for the node.
#[tokio::test]
async fn what_a_credential_provider_opened_is_its_accounts_or_everybodys() {
    use super::credential_provider::tests::{ATTRIBUTES, node as plugins, of_r_io, pod};
    for (attributes, of_others) in [(ATTRIBUTES, false), ("", true)] {
        let mut node = node(Verification::NeverPreloaded);
        let mut plugin = plugins(&[("p", of_r_io("Image", "0s", "right"), attributes)]);
        plugin.annotate("role");
        node.manager.providers = std::mem::take(&mut plugin.providers);
        let ask = async |pod: Pod, policy: &str| {
            let cancel = CancellationToken::new();
            let manager = &node.manager;
            let asked = manager.ensure_image_exists(&pod, "c", PRIVATE, Some(policy), &[], &cancel);
            asked.await.map_err(|failed| failed.reason)
        };
        ask(pod("1", "a"), "IfNotPresent").await.unwrap();
        assert_eq!(plugin.asked("p").len(), 1, "once for a pull");
        ask(pod("2", "a"), "Never").await.unwrap();
        for account in ["", "b"] {
            let used = ask(pod("3", account), "Never").await;
            assert_eq!(used.is_ok(), of_others, "{account:?} {used:?}");
        }
        // Nobody's credentials are looked up for what is everybody's.
        assert_eq!(plugin.asked("p").len(), if of_others { 1 } else { 2 });
        let path = node.dir.path().join("image_manager/pulled");
        let record = std::fs::read_dir(path).unwrap().next().unwrap().unwrap();
        let record = std::fs::read_to_string(record.path()).unwrap();
        assert_eq!(record.contains("\"nodePodsAccessible\":true"), of_others);
        let account =
            r#""kubernetesServiceAccounts":[{"uid":"n-a-uid","namespace":"n","name":"a"}]"#;
        assert_eq!(record.contains(account), !of_others, "{record}");
    }
}

/// The pod's own secret comes before what plugins know.
#[tokio::test]
async fn pull_secrets_come_before_credential_providers() {
    use super::credential_provider::tests::{node as plugins, of_r_io, pod};
    let mut node = node(Verification::NeverPreloaded);
    let mut plugin = plugins(&[("p", of_r_io("Image", "0s", "plugin"), "")]);
    node.manager.providers = std::mem::take(&mut plugin.providers);
    let (pod, secrets) = (pod("1", ""), [pull_secret("n", "secret")]);
    let keyring = PodKeyring {
        manager: &node.manager,
        pod: &pod,
        image: PRIVATE,
        secrets: &secrets,
        found: OnceCell::new(),
    };
    let found = keyring.get().await;
    let order: Vec<&str> = found.iter().map(|f| f.auth.password.as_str()).collect();
    assert_eq!(order, ["secret", "plugin"]);
}

/// A pod that is deleted does not wait for a plugin that takes its time.
#[tokio::test]
async fn a_deleted_pod_waits_for_no_plugin() {
    use super::credential_provider::tests::{ATTRIBUTES, node as plugins, of_r_io, pod};
    let mut node = node(Verification::NeverPreloaded);
    let mut plugin = plugins(&[("p", of_r_io("Image", "0s", "right"), ATTRIBUTES)]);
    plugin.annotate("role");
    node.manager.providers = std::mem::take(&mut plugin.providers);
    let (cancel, owner) = (CancellationToken::new(), pod("1", "a"));
    let manager = &node.manager;
    let pulled = manager.ensure_image_exists(&owner, "c", PRIVATE, None, &[], &cancel);
    pulled.await.unwrap();
    let mut slow = plugins(&[("slow", "sleep 50".to_owned(), ATTRIBUTES)]);
    slow.annotate("role");
    node.manager.providers = std::mem::take(&mut slow.providers);
    let begin = Instant::now();
    for policy in ["Always", "IfNotPresent"] {
        let cancel = CancellationToken::new();
        let asked =
            node.manager
                .ensure_image_exists(&owner, "c", PRIVATE, Some(policy), &[], &cancel);
        let (asked, ()) = tokio::join!(asked, async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            cancel.cancel();
        });
        assert_eq!(
            asked.unwrap_err().message,
            "pod is being terminated",
            "{policy}"
        );
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
}

/// While a pull is backed off no plugin is asked.
#[tokio::test]
async fn no_credential_provider_is_asked_while_a_pull_is_backed_off() {
    use super::credential_provider::tests::{node as plugins, of_r_io, pod};
    let mut node = node(Verification::NeverPreloaded);
    let mut plugin = plugins(&[("p", of_r_io("Image", "0s", "wrong"), "")]);
    node.manager.providers = std::mem::take(&mut plugin.providers);
    let (cancel, pod) = (CancellationToken::new(), pod("1", ""));
    for reason in ["ErrImagePull", "ImagePullBackOff"] {
        let manager = &node.manager;
        let asked = manager.ensure_image_exists(&pod, "c", PRIVATE, None, &[], &cancel);
        assert_eq!(asked.await.unwrap_err().reason, reason);
        assert_eq!(plugin.asked("p").len(), 1);
    }
}

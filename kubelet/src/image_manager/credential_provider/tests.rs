use super::*;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The account `a` of every namespace, and tokens that name what they were asked for.
#[derive(Default)]
struct FakeAccounts {
    annotations: Mutex<BTreeMap<String, String>>,
    tokens: AtomicUsize,
}

#[async_trait]
impl Accounts for FakeAccounts {
    async fn service_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ServiceAccount>>, SourceError> {
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                uid: Some(format!("{namespace}-{name}-uid")),
                annotations: Some(lock(&self.annotations).clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        Ok((name == "a").then(|| Arc::new(account)))
    }

    async fn token(&self, request: &TokenRequest) -> Result<String, SourceError> {
        self.tokens.fetch_add(1, Ordering::Relaxed);
        assert_eq!(request.expiration_seconds, None);
        Ok(format!(
            "token-of-{}-{}-for-{}",
            request.service_account_uid.as_deref().unwrap_or_default(),
            request.pod_uid,
            request.audiences.join(",")
        ))
    }
}

/// A node with plugins that are a shell with a script; each notes its requests in a file.
pub(in crate::image_manager) struct Node {
    dir: tempfile::TempDir,
    accounts: Arc<FakeAccounts>,
    pub(in crate::image_manager) providers: CredentialProviders,
}

const V1_FIELDS: &str =
    "apiVersion: credentialprovider.kubelet.k8s.io/v1, defaultCacheDuration: 0s";

/// Notes the request, and answers with `rest`.
fn answers(rest: &str) -> String {
    format!(
        r#"cat >> "$LOG"; echo '{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",{rest}}}'"#
    )
}

pub(in crate::image_manager) fn of_r_io(scope: &str, duration: &str, password: &str) -> String {
    answers(&format!(
        r#""cacheKeyType":"{scope}","cacheDuration":"{duration}","auth":{{"r.io":{{"username":"u","password":"{password}"}}}}"#
    ))
}

/// `plugins`: name, script, more fields of the configuration.
pub(in crate::image_manager) fn node(plugins: &[(&str, String, &str)]) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let mut items = vec![];
    for (name, script, more) in plugins {
        std::os::unix::fs::symlink("/bin/sh", bin.join(name)).unwrap();
        let (script, log) = (
            serde_json::to_string(script).unwrap(),
            dir.path().join(format!("{name}.log")),
        );
        items.push(format!(
            "{{name: {name}, {V1_FIELDS}, matchImages: [r.io, '*.r.io'], args: [-c, {script}], env: [{{name: LOG, value: {}}}]{more}}}",
            log.display()
        ));
    }
    let config = dir.path().join("config.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: [{}]\n",
        items.join(", ")
    );
    std::fs::write(&config, text).unwrap();
    let accounts = Arc::new(FakeAccounts::default());
    let providers = CredentialProviders::load(&config, &bin, true, accounts.clone()).unwrap();
    Node {
        dir,
        accounts,
        providers,
    }
}

pub(in crate::image_manager) fn pod(uid: &str, account: &str) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("pod-{uid}")),
            namespace: Some("n".into()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            service_account_name: Some(account.to_owned()),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

impl Node {
    async fn passwords(&self, image: &str, pod: &Pod) -> Vec<String> {
        let found = self.providers.lookup(image, pod).await;
        found.into_iter().map(|t| t.auth.password).collect()
    }

    pub(in crate::image_manager) fn annotate(&self, key: &str) {
        lock(&self.accounts.annotations).insert(key.to_owned(), "reader".to_owned());
    }

    /// What a plugin was asked so far.
    pub(in crate::image_manager) fn asked(&self, plugin: &str) -> Vec<serde_json::Value> {
        let log = self.dir.path().join(format!("{plugin}.log"));
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect()
    }
}

#[tokio::test]
async fn asks_who_matches_and_keeps_nothing_for_no_time() {
    let node = node(&[("p", of_r_io("Image", "0s", "secret"), "")]);
    let pod = pod("1", "");
    assert!(node.passwords("other.io/x:1", &pod).await.is_empty());
    assert!(node.passwords("r.io:5000/x:1", &pod).await.is_empty());
    assert!(node.asked("p").is_empty());
    for _ in 0..2 {
        let found = node.providers.lookup("r.io/team/x:1", &pod).await;
        assert_eq!(found.len(), 1);
        assert_eq!(
            (
                found[0].auth.username.as_str(),
                found[0].auth.password.as_str()
            ),
            ("u", "secret")
        );
        assert_eq!(found[0].source, CredentialSource::Node);
    }
    let asked = node.asked("p");
    assert_eq!(asked.len(), 2);
    let expect = serde_json::json!({
        "kind": "CredentialProviderRequest", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "image": "r.io/team/x",
    });
    assert_eq!(asked[0], expect);
    // The answer is for r.io, and the image is elsewhere.
    assert!(node.passwords("x.r.io/y", &pod).await.is_empty());
    assert_eq!(node.asked("p").len(), 3);
}

#[tokio::test]
async fn keeps_answers_for_what_they_reach() {
    for (scope, again, other_image, other_registry) in [
        ("Image", 1, 2, 3),
        ("Registry", 1, 1, 2),
        ("Global", 1, 1, 1),
    ] {
        let node = node(&[("p", of_r_io(scope, "1h", "s"), "")]);
        let pod = pod("1", "");
        for (image, expect) in [
            ("r.io/x", 1),
            ("r.io/x:2", again),
            ("r.io/y", other_image),
            ("x.r.io/y", other_registry),
        ] {
            node.passwords(image, &pod).await;
            assert_eq!(node.asked("p").len(), expect, "{scope} {image}");
        }
    }
}

#[tokio::test]
async fn the_default_duration_counts_where_the_answer_has_none() {
    let rest = r#""cacheKeyType":"Image","auth":{"r.io":{"username":"u","password":"s"}}"#;
    let mut node = node(&[("p", answers(rest), "")]);
    let pod = pod("1", "");
    for expect in [1, 2] {
        node.passwords("r.io/x", &pod).await;
        assert_eq!(node.asked("p").len(), expect);
    }
    let provider = Arc::get_mut(&mut node.providers.providers[0]).unwrap();
    provider.config.default_cache_duration = Duration::from_secs(3600);
    for _ in 0..2 {
        node.passwords("r.io/x", &pod).await;
        assert_eq!(node.asked("p").len(), 3);
    }
}

#[tokio::test]
async fn one_process_for_the_same_question() {
    let slow = format!("sleep 0.3; {}", of_r_io("Image", "0s", "s"));
    let node = node(&[("p", slow, "")]);
    let pod = pod("1", "");
    let (a, b, other) = tokio::join!(
        node.passwords("r.io/x:1", &pod),
        node.passwords("r.io/x:2", &pod),
        node.passwords("r.io/y", &pod),
    );
    assert_eq!((a.len(), b.len(), other.len()), (1, 1, 1));
    assert_eq!(node.asked("p").len(), 2);
    assert!(lock(&node.providers.providers[0].flights).is_empty());
}

#[tokio::test]
async fn several_plugins_in_their_order_and_one_that_fails() {
    let node = node(&[
        ("bad", "echo no >&2; exit 3".to_owned(), ""),
        ("one", of_r_io("Image", "0s", "1"), ""),
        ("gibberish", "echo gibberish".to_owned(), ""),
        ("two", of_r_io("Image", "0s", "2"), ""),
    ]);
    assert_eq!(node.passwords("r.io/x", &pod("1", "")).await, ["1", "2"]);
    let errors = |name: &str| {
        metrics::CREDENTIAL_PLUGIN_ERRORS
            .with_label_values(&[name])
            .get()
    };
    assert_eq!(
        (errors("bad"), errors("one"), errors("gibberish")),
        (1, 0, 0)
    );
    let count = metrics::CREDENTIAL_PLUGIN_DURATION.with_label_values(&["bad"]);
    assert_eq!(count.get_sample_count(), 1);
    let gauge = &*metrics::CREDENTIAL_PROVIDER_CONFIG;
    let hash = config::load(&node.dir.path().join("config.yaml"), true)
        .unwrap()
        .hash;
    assert_eq!(gauge.with_label_values(&[hash.as_str()]).get(), 1);
}

#[tokio::test]
async fn the_environment_is_the_kubelets_and_what_is_configured() {
    let script =
        r#"test -n "$PATH" && test -n "$LOG" && "#.to_owned() + &of_r_io("Image", "0s", "s");
    let node = node(&[("p", script, "")]);
    assert_eq!(node.passwords("r.io/x", &pod("1", "")).await, ["s"]);
}

fn shell(script: &str, timeout: Duration) -> Plugin {
    Plugin {
        name: "shell".into(),
        path: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![],
        timeout,
    }
}

/// Waits for the end of a process that is nobody's child here.
async fn gone(pid: &str) {
    let process = PathBuf::from("/proc").join(pid.trim()).join("stat");
    let ended = |stat: String| stat.rsplit(')').next().is_none_or(|s| s.starts_with(" Z"));
    let waiting = async {
        while !std::fs::read_to_string(&process).map_or(true, ended) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("it is still there");
}

#[tokio::test]
async fn whoever_takes_too_long_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "sleep 1000 & echo $! >> {0}; echo $$ >> {0}; wait",
        pids.display()
    );
    let error = shell(&script, Duration::from_millis(500))
        .ask(b"")
        .await
        .unwrap_err();
    assert!(matches!(error, ExecError::TimedOut(_)), "{error}");
    let pids = std::fs::read_to_string(&pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        gone(pid).await;
    }
}

#[tokio::test]
async fn answers_and_complaints_are_bounded() {
    let minute = Duration::from_secs(60);
    let error = shell("yes", minute).ask(b"").await.unwrap_err();
    assert!(matches!(error, ExecError::TooLong), "{error}");
    let script = "head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1";
    let error = shell(script, minute).ask(b"").await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("exit status: 1: xxx") && text.len() < 10_000);
    // More than a pipe holds, to one that does not listen.
    let answer = shell("echo done", minute).ask(&vec![b'x'; 1 << 20]).await;
    assert_eq!(answer.unwrap(), b"done\n");
}

/// Accounts with the annotation `role` alone.
pub(in crate::image_manager) const ATTRIBUTES: &str = ", tokenAttributes: {serviceAccountTokenAudience: aud, requireServiceAccount: true, cacheType: ServiceAccount, requiredServiceAccountAnnotationKeys: [role], optionalServiceAccountAnnotationKeys: [hint]}";

#[tokio::test]
async fn tokens_of_accounts() {
    let node = node(&[("p", of_r_io("Image", "1h", "s"), ATTRIBUTES)]);
    // No account, none of that name, and one that lacks the annotation.
    for account in ["", "b", "a"] {
        assert!(
            node.passwords("r.io/x", &pod("1", account))
                .await
                .is_empty(),
            "{account}"
        );
    }
    assert!(node.asked("p").is_empty());
    assert_eq!(node.accounts.tokens.load(Ordering::Relaxed), 0);
    lock(&node.accounts.annotations).extend([
        ("role".to_owned(), "reader".to_owned()),
        ("more".to_owned(), "unseen".to_owned()),
    ]);
    let found = node.providers.lookup("r.io/x", &pod("1", "a")).await;
    let account = ImagePullServiceAccount {
        uid: "n-a-uid".into(),
        namespace: "n".into(),
        name: "a".into(),
    };
    assert_eq!(
        found[0].source,
        CredentialSource::ServiceAccount(account.clone())
    );
    let asked = node.asked("p");
    assert_eq!(
        asked[0]["serviceAccountToken"],
        "token-of-n-a-uid-1-for-aud"
    );
    assert_eq!(
        asked[0]["serviceAccountAnnotations"],
        serde_json::json!({"role": "reader"})
    );
    // Another pod of the account: what is kept serves it, and is the account's.
    let found = node.providers.lookup("r.io/x", &pod("2", "a")).await;
    assert_eq!(found[0].source, CredentialSource::ServiceAccount(account));
    assert_eq!(node.asked("p").len(), 1);
    // Other annotations are another question.
    lock(&node.accounts.annotations).insert("hint".into(), "h".into());
    node.passwords("r.io/x", &pod("2", "a")).await;
    assert_eq!(node.asked("p").len(), 2);
}

#[tokio::test]
async fn kept_by_token_and_pods_without_account_where_none_is_required() {
    let attributes = ", tokenAttributes: {serviceAccountTokenAudience: aud, requireServiceAccount: false, cacheType: Token}";
    let node = node(&[("p", of_r_io("Global", "1h", "s"), attributes)]);
    let source = |found: Vec<TrackedAuth>| found[0].source.clone();
    let anonymous = node.providers.lookup("r.io/x", &pod("0", "")).await;
    assert_eq!(source(anonymous), CredentialSource::Node);
    for (uid, expect) in [("1", 2), ("1", 2), ("2", 3)] {
        let found = node.providers.lookup("r.io/x", &pod(uid, "a")).await;
        assert!(matches!(source(found), CredentialSource::ServiceAccount(_)));
        assert_eq!(node.asked("p").len(), expect);
    }
    let asked = node.asked("p");
    assert!(asked[0].get("serviceAccountToken").is_none());
    assert!(asked[1].get("serviceAccountToken").is_some());
}

#[tokio::test]
async fn the_token_itself_is_no_password_but_by_token() {
    let echo = of_r_io("Image", "1h", "token-of-n-a-uid-1-for-aud");
    for (cache_type, expect) in [("ServiceAccount", 0), ("Token", 1)] {
        let attributes = format!(
            ", tokenAttributes: {{serviceAccountTokenAudience: aud, requireServiceAccount: true, cacheType: {cache_type}}}"
        );
        let node = node(&[("p", echo.clone(), &attributes)]);
        let found = node.passwords("r.io/x", &pod("1", "a")).await;
        assert_eq!(found.len(), expect, "{cache_type}");
    }
}

#[test]
fn programs_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: [{{name: p, {V1_FIELDS}, matchImages: [r.io]}}]\n"
    );
    std::fs::write(&config, text).unwrap();
    let load = |bin: &Path| {
        let accounts = Arc::new(FakeAccounts::default());
        let loaded = CredentialProviders::load(&config, bin, true, accounts);
        loaded.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let bin = dir.path().join("bin");
    assert!(load(&bin).starts_with("error inspecting binary directory"));
    std::fs::create_dir(&bin).unwrap();
    assert!(load(&bin).starts_with("error inspecting binary executable"));
    std::fs::write(bin.join("p"), "").unwrap();
    assert!(load(&bin).ends_with("it is no file that may be executed"));
}

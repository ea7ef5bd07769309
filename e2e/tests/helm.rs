//! Promise: the charts do what people do with charts, by Helm 3 and Helm 4: linted, rendered, installed, tested, upgraded, rolled back,
//! uninstalled, two releases side by side; and what they install does its work.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::Cluster;
use e2e::cluster::layout::CONTROL_PLANE_IP;
use e2e::images::ours;
use e2e::probe::{Namespace, busybox_pod, cluster, wait_until};
use e2e::programs::{self, HELMS, Outputs};
use e2e::step::{Steps, output};
use serde_json::Value;

const PROGRAMS: [&str; 5] = [
    "kube-scheduler",
    "kube-controller-manager",
    "kube-proxy",
    "cloud-controller-manager",
    "virtual-kubelet",
];

/// Kinds that a chart may leave something of.
const KINDS: &str = "deployments,daemonsets,replicasets,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,\
                     clusterroles,clusterrolebindings,poddisruptionbudgets";

/// One line of Helm, with folders of its own.
struct Helm<'a> {
    cluster: Option<&'a Cluster>,
    program: PathBuf,
    charts: PathBuf,
    home: tempfile::TempDir,
}

impl<'a> Helm<'a> {
    fn new(outputs: &Outputs, cluster: Option<&'a Cluster>, name: &str) -> Result<Self> {
        programs::build_upstream(&Steps::new(outputs.logs())?, outputs, &[name])?;
        Ok(Self {
            cluster,
            program: outputs.upstream(name),
            charts: outputs.workspace.join("charts"),
            home: tempfile::tempdir()?,
        })
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = match self.cluster {
            Some(cluster) => {
                let mut command = cluster.control_plane().command(&self.program);
                command.env("KUBECONFIG", cluster.layout.kubeconfig("admin-inside"));
                command
            }
            None => std::process::Command::new(&self.program),
        };
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, self.home.path());
        }
        output(command.current_dir(&self.charts).args(args))
            .with_context(|| format!("{} {}", self.program.display(), args.join(" ")))
    }
}

/// Every chart with the files of its `ci` folder.
fn charts(outputs: &Outputs) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(outputs.workspace.join("charts"))? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let mut values = Vec::new();
        for file in fs::read_dir(entry.path().join("ci"))? {
            values.push(file?.path().display().to_string());
        }
        ensure!(
            !values.is_empty(),
            "{} has no ci values",
            entry.path().display()
        );
        found.insert(entry.file_name().to_string_lossy().into_owned(), values);
    }
    ensure!(found.len() == 5, "charts: {:?}", found.keys());
    Ok(found)
}

#[test]
fn every_chart_is_linted_and_rendered_and_refuses_values_it_does_not_know() -> Result<()> {
    let outputs = Outputs::find();
    for name in HELMS {
        let helm = Helm::new(&outputs, None, name)?;
        for (chart, ci) in charts(&outputs)? {
            for values in ci {
                helm.run(&["lint", "--strict", "--quiet", &chart, "--values", &values])?;
                let text = helm.run(&["template", "a", &chart, "--values", &values])?;
                ensure!(
                    text.contains("helm.sh/hook: test") == !values.ends_with("remote-values.yaml"),
                    "{chart} with {values}: a test is rendered where there should be none, or none is\n{text}"
                );
                let monitored = fs::read_to_string(&values)?.contains("serviceMonitor:");
                ensure!(
                    text.contains("kind: ServiceMonitor") == monitored,
                    "{chart} with {values}: the ServiceMonitor is not as switched"
                );
            }
            let unknown = helm.run(&["template", "a", &chart, "--set", "image.repositry=a"]);
            let text = format!("{:#}", unknown.expect_err("a misspelt value passes"));
            ensure!(text.contains("repositry"), "{text}");
            let none = helm.run(&["template", "a", &chart]);
            let text = format!("{:#}", none.expect_err("no image, and it renders"));
            ensure!(
                text.contains("image.repository: give the image of"),
                "{text}"
            );
            let tagged = helm.run(&[
                "template",
                "a",
                &chart,
                "--set",
                "image.repository=x/y,image.tag=t",
            ])?;
            ensure!(tagged.contains("image: \"x/y:t\""), "{tagged}");
        }
    }
    Ok(())
}

/// Images of ours in the cluster's registry, by the program's name: as `--set` has them.
fn push_images(cluster: &Cluster) -> Result<BTreeMap<&'static str, String>> {
    let steps = Steps::new(cluster.outputs.logs())?;
    let made = ours::build(&steps, &cluster.outputs, &PROGRAMS, &[])?;
    let digests = ours::push(cluster, &made)?;
    let set = |(program, digest): (&&'static str, String)| {
        let values = format!("image.repository=registry.k8s.io/{program},image.digest={digest}");
        (*program, values)
    };
    Ok(PROGRAMS.iter().zip(digests).map(set).collect())
}

/// What is labelled as a release's, or is Helm's own record of it.
fn left(cluster: &Cluster, release: &str) -> Result<String> {
    let mut found = String::new();
    for selector in [
        format!("app.kubernetes.io/instance={release}"),
        format!("owner=helm,name={release}"),
    ] {
        found += &cluster.kubectl(&["get", KINDS, "-A", "-l", &selector, "-o", "name"])?;
    }
    Ok(found)
}

/// Pods take a moment to go after Helm has said that a release is gone.
fn assert_gone(cluster: &Cluster, releases: &[&str]) -> Result<()> {
    for release in releases {
        wait_until(
            &format!("nothing of {release} to be left"),
            Duration::from_secs(60),
            || match left(cluster, release)? {
                left if left.is_empty() => Ok(true),
                left => bail!("left:\n{left}"),
            },
        )?;
    }
    Ok(())
}

/// A pod for a scheduler of this name, bound by it.
fn is_scheduled_by(ns: &Namespace, scheduler: &str, name: &str) -> Result<()> {
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  schedulerName: {scheduler}\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{{name: main, image: 'registry.k8s.io/pause:3.10.2'}}]\n"
    ))?;
    ns.wait_ready(&format!("pod/{name}"), 60)
}

/// Install, test, a second release beside, upgrade, rollback, uninstall.
fn scheduler(cluster: &Cluster, helm: &Helm, line: &str, image: &str) -> Result<()> {
    let ns = Namespace::create(cluster, &format!("scheduler-{line}"))?;
    let (a, b) = (format!("{line}-a"), format!("{line}-b"));
    let chart = "gantry-scheduler";
    let in_ns = ["--namespace", &ns.name, "--timeout", "180s"];
    for release in [&a, &b] {
        let args = ["install", release, chart, "--wait", "--set", image];
        helm.run(&[&args[..], &in_ns].concat())?;
        is_scheduled_by(&ns, release, &format!("of-{release}"))?;
    }
    helm.run(&[&["test", a.as_str()][..], &in_ns].concat())?;

    let more = "replicaCount=2,schedulerName=other";
    let args = [
        "upgrade", &a, chart, "--wait", "--set", image, "--set", more,
    ];
    helm.run(&[&args[..], &in_ns].concat())?;
    // Helm 3 is content while the last pod of before is still there.
    wait_until("two replicas", Duration::from_secs(60), || {
        let deployment = ns.json(&["get", "deployment", &a])?;
        Ok(deployment["status"]["readyReplicas"] == 2 && deployment["status"]["replicas"] == 2)
    })?;
    is_scheduled_by(&ns, "other", "after-upgrade")?;
    is_metered(cluster, &ns, &a)?;

    helm.run(&[&["rollback", &a, "1", "--wait"][..], &in_ns].concat())?;
    let deployment = ns.json(&["get", "deployment", &a])?;
    ensure!(deployment["spec"]["replicas"] == 1, "{deployment}");
    is_scheduled_by(&ns, &a, "after-rollback")?;

    for release in [&a, &b] {
        helm.run(&[&["uninstall", release, "--wait"][..], &in_ns].concat())?;
    }
    assert_gone(cluster, &[&a, &b])?;
    // As with every program that elects a leader; the notes say it.
    let leases = ns.kubectl(&["get", "leases", "-o", "name"])?;
    for lease in leases.lines() {
        let name = lease.rsplit('/').next().unwrap_or_default();
        ensure!([&a, &b].iter().any(|release| *release == name), "{leases}");
    }
    ns.delete()
}

/// A pod's own account answers for its port: who may read metrics does, a stranger does not.
fn is_metered(cluster: &Cluster, ns: &Namespace, release: &str) -> Result<()> {
    let role = format!("{}-reader", ns.name);
    cluster.apply(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: {role}}}\nrules: [{{nonResourceURLs: [/metrics], verbs: [get]}}]\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {role}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {role}}}\nsubjects: [{{kind: ServiceAccount, name: default, namespace: {}}}]\n",
        ns.name
    ))?;
    let asked = (|| {
        let label = format!("app.kubernetes.io/instance={release}");
        let pods = ns.json(&["get", "pods", "-l", &label])?;
        let mut pods = pods["items"].as_array().into_iter().flatten();
        let pod = pods
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .context("no pod stays")?;
        let ip = pod["status"]["podIP"]
            .as_str()
            .context("a pod has an address")?;
        let token = ns.kubectl(&["create", "token", "default"])?;
        let ask = |header: &str| {
            let url = format!("https://{ip}:10259/metrics");
            let mut curl = cluster.control_plane().command("curl");
            output(curl.args([
                "-sSk",
                "--max-time",
                "10",
                "-w",
                "\n%{http_code}",
                "-H",
                header,
                &url,
            ]))
        };
        let page = ask(&format!("Authorization: Bearer {}", token.trim()))?;
        ensure!(
            page.ends_with("\n200") && page.contains("scheduler_pending_pods"),
            "the page of metrics: {}",
            page.chars()
                .rev()
                .take(200)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect::<String>()
        );
        let refused = ask("Accept: text/plain")?;
        ensure!(refused.ends_with("\n403"), "a stranger: {refused}");
        Ok(())
    })();
    cluster.kubectl(&["delete", "clusterrole,clusterrolebinding", &role])?;
    asked
}

/// Two releases of nodes, one of them grown and taken back.
fn virtual_kubelet(cluster: &Cluster, helm: &Helm, line: &str, image: &str) -> Result<()> {
    let ns = Namespace::create(cluster, &format!("virtual-{line}"))?;
    let (a, b) = (format!("{line}-sim"), format!("{line}-sim2"));
    let chart = "gantry-virtual-kubelet";
    let in_ns = ["--namespace", &ns.name, "--timeout", "180s"];
    let nodes = |release: &str| -> Result<usize> {
        let label = format!("gantry/virtual-kubelet={release}");
        let text = cluster.kubectl(&["get", "nodes", "-l", &label, "-o", "json"])?;
        let nodes: Value = serde_json::from_str(&text)?;
        let ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array();
            conditions
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        Ok(nodes["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(ready)
            .count())
    };
    let wait_nodes = |release: &str, count: usize| {
        wait_until(
            &format!("{count} nodes of {release}"),
            Duration::from_secs(60),
            || Ok(nodes(release)? == count),
        )
    };
    let ended = (|| {
        for release in [&a, &b] {
            let args = [
                "install", release, chart, "--wait", "--set", image, "--set", "nodes=2",
            ];
            helm.run(&[&args[..], &in_ns].concat())?;
            wait_nodes(release, 2)?;
        }
        helm.run(&[&["test", a.as_str()][..], &in_ns].concat())?;
        let args = [
            "upgrade", &a, chart, "--wait", "--set", image, "--set", "nodes=3",
        ];
        helm.run(&[&args[..], &in_ns].concat())?;
        wait_nodes(&a, 3)?;
        helm.run(&[&["rollback", &a, "1", "--wait"][..], &in_ns].concat())?;
        helm.run(&[&["test", a.as_str()][..], &in_ns].concat())?;
        for release in [&a, &b] {
            helm.run(&[&["uninstall", release, "--wait"][..], &in_ns].concat())?;
        }
        assert_gone(cluster, &[&a, &b])
    })();
    // They stay, and go by the command that the notes name.
    for release in [&a, &b] {
        let label = format!("gantry/virtual-kubelet={release}");
        cluster.kubectl(&["delete", "nodes", "-l", &label])?;
    }
    ended?;
    ns.delete()
}

/// One controller, under a Lease of its own, beside the cluster's.
fn controller_manager(cluster: &Cluster, helm: &Helm, line: &str, image: &str) -> Result<()> {
    let ns = Namespace::create(cluster, &format!("controllers-{line}"))?;
    let release = format!("{line}-kcm");
    let lease = format!(
        "leaderElection.resourceName={release},leaderElection.resourceNamespace={}",
        ns.name
    );
    let in_ns = ["--namespace", &ns.name, "--timeout", "180s"];
    let args = [
        "install",
        &release,
        "gantry-controller-manager",
        "--wait",
        "--set",
        image,
        "--set",
        &lease,
        "--set",
        "controllers={ttl-after-finished-controller}",
    ];
    helm.run(&[&args[..], &in_ns].concat())?;
    helm.run(&[&["test", release.as_str()][..], &in_ns].concat())?;
    wait_until("it leads", Duration::from_secs(30), || {
        let holder = ns.kubectl(&[
            "get",
            "lease",
            &release,
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ])?;
        Ok(holder.starts_with(&format!("{release}-")))
    })?;
    helm.run(&[&["uninstall", &release, "--wait"][..], &in_ns].concat())?;
    assert_gone(cluster, &[&release])?;
    ns.delete()
}

/// A load balancer that somebody set up by hand reaches the Service's status.
fn cloud_controller_manager(cluster: &Cluster, helm: &Helm, line: &str, image: &str) -> Result<()> {
    let ns = Namespace::create(cluster, &format!("cloud-{line}"))?;
    let release = format!("{line}-ccm");
    let values = helm.home.path().join("cloud.yaml");
    fs::write(
        &values,
        format!(
            "controllers: [service-lb-controller]\nleaderElection: {{resourceName: {release}, resourceNamespace: {ns}}}\n\
             cloudConfig: {{instances: [], loadBalancers: [{{service: {ns}/front, ingress: [{{ip: 192.0.2.7}}]}}]}}\n",
            ns = ns.name
        ),
    )?;
    let in_ns = ["--namespace", &ns.name, "--timeout", "180s"];
    let chart = "gantry-cloud-controller-manager";
    let file = values.display().to_string();
    let args = [
        "install", &release, chart, "--wait", "--set", image, "--values", &file,
    ];
    helm.run(&[&args[..], &in_ns].concat())?;
    helm.run(&[&["test", release.as_str()][..], &in_ns].concat())?;
    ns.kubectl(&["create", "service", "loadbalancer", "front", "--tcp=80:80"])?;
    let ip = "--for=jsonpath={.status.loadBalancer.ingress[0].ip}=192.0.2.7";
    ns.kubectl(&["wait", ip, "service/front", "--timeout=60s"])?;
    // Its finalizer goes with the controller that put it there.
    ns.kubectl(&["delete", "service", "front", "--timeout=60s"])?;
    helm.run(&[&["uninstall", &release, "--wait"][..], &in_ns].concat())?;
    assert_gone(cluster, &[&release])?;
    ns.delete()
}

/// In the place of the kube-proxy of a node: a Service that came later is reached from there.
fn kube_proxy(
    cluster: &mut Cluster,
    helm_of: impl Fn(&Cluster, &[&str]) -> Result<String>,
    image: &str,
) -> Result<()> {
    let own = "kube-proxy-node-2";
    cluster.process(own)?.stop(Duration::from_secs(10))?;
    let served = kube_proxy_of_chart(cluster, &helm_of, image);
    cluster.restart(own)?;
    served
}

fn kube_proxy_of_chart(
    cluster: &Cluster,
    helm: &impl Fn(&Cluster, &[&str]) -> Result<String>,
    image: &str,
) -> Result<()> {
    let ns = Namespace::create(cluster, "helm-proxy")?;
    let in_ns = ["--namespace", &ns.name, "--timeout", "180s"];
    let server = format!(
        "apiServer.host={CONTROL_PLANE_IP},nodeSelector.kubernetes\\.io/hostname=node-2,config.clusterCIDR=10.244.0.0/16,config.detectLocalMode=ClusterCIDR"
    );
    let args = [
        "install",
        "proxy",
        "gantry-kube-proxy",
        "--wait",
        "--set",
        image,
        "--set",
        &server,
    ];
    helm(cluster, &[&args[..], &in_ns].concat())?;
    ns.apply(&busybox_pod(
        "web",
        "node-1",
        "echo here > index.html; exec httpd -f -p 8080",
    ))?;
    ns.kubectl(&["expose", "pod", "web", "--port=80", "--target-port=8080"])?;
    ns.apply(&busybox_pod("client", "node-2", "sleep 1000"))?;
    for pod in ["pod/web", "pod/client"] {
        ns.wait_ready(pod, 60)?;
    }
    let address = ns.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    wait_until(
        "the Service to answer on node-2",
        Duration::from_secs(20),
        || {
            let url = format!("http://{}/", address.trim());
            Ok(ns.kubectl(&[
                "exec", "client", "--", "wget", "-q", "-T", "3", "-O", "-", &url,
            ])? == "here\n")
        },
    )?;
    helm(cluster, &[&["test", "proxy"][..], &in_ns].concat())?;
    helm(
        cluster,
        &[&["uninstall", "proxy", "--wait"][..], &in_ns].concat(),
    )?;
    assert_gone(cluster, &["proxy"])?;
    ns.delete()
}

#[test]
#[ignore = "minutes; `cargo e2e test helm` runs it"]
fn releases_come_change_and_go_and_do_their_work() -> Result<()> {
    let mut cluster = cluster()?;
    let images = push_images(&cluster)?;
    // Each line of Helm in namespaces of its own, at the same time.
    std::thread::scope(|scope| {
        let lines: Vec<_> = HELMS
            .iter()
            .map(|name| {
                let (cluster, images) = (&cluster, &images);
                scope.spawn(move || {
                    let helm = Helm::new(&cluster.outputs, Some(cluster), name)?;
                    scheduler(cluster, &helm, name, &images["kube-scheduler"])?;
                    virtual_kubelet(cluster, &helm, name, &images["virtual-kubelet"])?;
                    controller_manager(cluster, &helm, name, &images["kube-controller-manager"])?;
                    cloud_controller_manager(
                        cluster,
                        &helm,
                        name,
                        &images["cloud-controller-manager"],
                    )
                    .with_context(|| name.to_string())
                })
            })
            .collect();
        for line in lines {
            line.join().expect("a line of Helm does not panic")?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let run = |cluster: &Cluster, args: &[&str]| {
        Helm::new(&cluster.outputs, Some(cluster), HELMS[1])?.run(args)
    };
    kube_proxy(&mut cluster, run, &images["kube-proxy"])?;
    Ok(())
}

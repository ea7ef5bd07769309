//! The files a node starts with: kubeconfigs, component configs, registry mirror, containerd.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::cluster::layout::{
    CLUSTER_CIDR, CONTROL_PLANE_IP, DNS_SERVICE_IP, REGISTRY_PORT, node_name,
};

/// The RuntimeClass handler that upstream's suite asks for (`PreconfiguredRuntimeClassHandler`).
pub const TEST_HANDLER: &str = "test-handler";

/// Writes everything below the node's folder; `etc` and `lib` become its /etc and /var/lib.
///
/// # Errors
/// A file cannot be written.
pub fn write(cluster: &Cluster, index: u8, dir: &Path) -> Result<()> {
    let name = node_name(index);
    let etc = dir.join("etc");
    let put = |path: &str, text: &str| -> Result<()> {
        let file = dir.join(path);
        fs::create_dir_all(file.parent().expect("a file lies in a folder"))?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        // As kubeadm: a component's configuration is for root alone.
        if path.starts_with("lib/") {
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    };
    fs::create_dir_all(etc.join("kubernetes/manifests"))?;
    fs::create_dir_all(etc.join("cni/net.d"))?;
    put("etc/hostname", &format!("{name}\n"))?;
    put(
        "etc/hosts",
        &format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"),
    )?;
    // Nothing answers there: the cluster reaches no outside world.
    put(
        "etc/resolv.conf",
        &format!("nameserver {CONTROL_PLANE_IP}\n"),
    )?;
    for (from, to) in [("ca.crt", "pki/ca.crt")] {
        fs::create_dir_all(etc.join("kubernetes/pki"))?;
        fs::copy(cluster.layout.pki(from), etc.join("kubernetes").join(to))?;
    }
    fs::copy(
        cluster.layout.kubeconfig("bootstrap-kubelet"),
        etc.join("kubernetes/bootstrap-kubelet.conf"),
    )?;
    fs::copy(
        cluster.layout.kubeconfig("kube-proxy"),
        dir.join("lib/kube-proxy/kubeconfig.conf"),
    )?;
    put("lib/kubelet/config.yaml", &kubelet_config(cluster, &name))?;
    put("lib/kube-proxy/config.conf", &kube_proxy_config())?;
    put(
        "etc/containerd/certs.d/registry.k8s.io/hosts.toml",
        &format!(
            "server = \"http://{CONTROL_PLANE_IP}:{REGISTRY_PORT}\"\n\n[host.\"http://{CONTROL_PLANE_IP}:{REGISTRY_PORT}\"]\n  \
             capabilities = [\"pull\", \"resolve\"]\n"
        ),
    )?;
    if cluster.state.options.is_upstream_node(index) {
        put(
            "etc/containerd/config.toml",
            &containerd_config(&cluster.outputs.upstream_bin()),
        )?;
    }
    Ok(())
}

/// The disk is the machine's, with what others keep on it: as kind's nodes, these do nothing about how full it is.
fn kubelet_config(cluster: &Cluster, name: &str) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true, cacheTTL: 0s}}
  x509: {{clientCAFile: /etc/kubernetes/pki/ca.crt}}
authorization: {{mode: Webhook}}
clusterDomain: cluster.local
clusterDNS: [{DNS_SERVICE_IP}]
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failSwapOn: false
healthzBindAddress: 127.0.0.1
healthzPort: 10248
resolvConf: /etc/resolv.conf
staticPodPath: /etc/kubernetes/manifests
rotateCertificates: true
maxPods: {max_pods}
evictionHard: {{memory.available: 200Mi, nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%}}
imageGCHighThresholdPercent: 100
serializeImagePulls: false
",
        cgroup = cluster.layout.node_cgroup(name),
        max_pods = cluster.state.options.max_pods,
    )
}

fn kube_proxy_config() -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}}
mode: nftables
clusterCIDR: {CLUSTER_CIDR}
detectLocalMode: ClusterCIDR
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"
    )
}

fn containerd_config(bin: &Path) -> String {
    let runtime = |name: &str| {
        format!(
            "
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]
      runtime_type = 'io.containerd.runc.v2'
      runtime_path = '{bin}/containerd-shim-runc-v2'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}.options]
        BinaryName = '{bin}/runc'
        SystemdCgroup = false
",
            bin = bin.display()
        )
    };
    format!(
        "version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
[grpc]
  address = '/run/containerd/containerd.sock'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'registry.k8s.io/pause:3.10.2'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{bin}/cni']
    conf_dir = '/etc/cni/net.d'
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'{runc}{test}",
        bin = bin.display(),
        runc = runtime("runc"),
        // The suite's RuntimeClass specs want a handler of this name.
        test = runtime(TEST_HANDLER),
    )
}

/// Written in one rename: containerd watches the folder.
///
/// # Errors
/// The file cannot be written.
pub fn write_cni(cluster: &Cluster, name: &str, pod_cidr: &str) -> Result<()> {
    let text = format!(
        r#"{{"cniVersion":"1.0.0","name":"gantry-e2e","plugins":[
 {{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,"ipMasq":false,
   "ipam":{{"type":"host-local","ranges":[[{{"subnet":"{pod_cidr}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}],"dataDir":"/var/lib/cni/ipam"}}}},
 {{"type":"portmap","capabilities":{{"portMappings":true}},"backend":"nftables"}}]}}
"#
    );
    // Through the node's own view: its /etc is an overlay that must not be written from below.
    let script = "cat > /etc/cni/net.d/.half && mv /etc/cni/net.d/.half /etc/cni/net.d/10-gantry-e2e.conflist";
    let mut child = cluster
        .node_place(name)
        .command("sh")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(
        child.stdin.as_mut().expect("stdin is piped"),
        text.as_bytes(),
    )?;
    anyhow::ensure!(
        child.wait()?.success(),
        "writing the CNI configuration of {name} failed"
    );
    Ok(())
}

/// The search path with upstream's programs first.
pub fn path_with(bin: &Path) -> String {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    format!("{}:{path}", bin.display())
}

//! The table of upstream's programs: which package of which Go module each is, and how it is told its version.

use super::Kubernetes;

/// A program of one of the Go modules.
pub struct GoProgram {
    pub name: &'static str,
    pub module: &'static str,
    pub package: &'static str,
    pub kind: GoKind,
}

#[derive(Clone, Copy, PartialEq)]
pub enum GoKind {
    /// Carries Kubernetes' version.
    Kubernetes(Kubernetes),
    Plain,
    Containerd,
    Runc,
    /// Carries the version of Kubernetes' libraries, which charts without a cluster are rendered for; Helm 4 looks it up itself.
    Helm3,
    /// `go test -c`; carries Kubernetes' version.
    Test(Kubernetes),
    /// `go test -c`.
    PlainTest,
}

const fn go(
    name: &'static str,
    module: &'static str,
    package: &'static str,
    kind: GoKind,
) -> GoProgram {
    GoProgram {
        name,
        module,
        package,
        kind,
    }
}

pub const GO_PROGRAMS: &[GoProgram] = &[
    go("etcd", "", "go.etcd.io/etcd/server/v3", GoKind::Plain),
    go(
        "etcdctl",
        "etcd",
        "go.etcd.io/etcd/etcdctl/v3",
        GoKind::Plain,
    ),
    go(
        "etcdutl",
        "etcd",
        "go.etcd.io/etcd/etcdutl/v3",
        GoKind::Plain,
    ),
    go(
        "kube-apiserver",
        "",
        "k8s.io/kubernetes/cmd/kube-apiserver",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kubectl",
        "",
        "k8s.io/kubernetes/cmd/kubectl",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kube-scheduler",
        "",
        "k8s.io/kubernetes/cmd/kube-scheduler",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kube-controller-manager",
        "",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kubelet",
        "",
        "k8s.io/kubernetes/cmd/kubelet",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kube-proxy",
        "",
        "k8s.io/kubernetes/cmd/kube-proxy",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "agnhost",
        "",
        "k8s.io/kubernetes/test/images/agnhost",
        GoKind::Plain,
    ),
    go(
        "regression-issue-74839",
        "",
        "k8s.io/kubernetes/test/images/regression-issue-74839",
        GoKind::Plain,
    ),
    go(
        "resource-consumer",
        "",
        "k8s.io/kubernetes/test/images/resource-consumer",
        GoKind::Plain,
    ),
    go(
        "consume-cpu",
        "",
        "k8s.io/kubernetes/test/images/resource-consumer/consume-cpu",
        GoKind::Plain,
    ),
    go(
        "sample-device-plugin",
        "",
        "k8s.io/kubernetes/test/images/sample-device-plugin",
        GoKind::Plain,
    ),
    go(
        "dra-test-driver",
        "",
        "k8s.io/kubernetes/test/e2e/dra/test-driver",
        GoKind::Plain,
    ),
    go(
        "kube-apiserver-1.36",
        "v1.36",
        "k8s.io/kubernetes/cmd/kube-apiserver",
        GoKind::Kubernetes(Kubernetes::V1_36),
    ),
    go(
        "e2e.test",
        "",
        "k8s.io/kubernetes/test/e2e",
        GoKind::Test(Kubernetes::V1_37),
    ),
    go(
        "e2e-1.36.test",
        "v1.36",
        "k8s.io/kubernetes/test/e2e",
        GoKind::Test(Kubernetes::V1_36),
    ),
    go(
        "ginkgo",
        "",
        "github.com/onsi/ginkgo/v2/ginkgo",
        GoKind::Plain,
    ),
    go(
        "sample-apiserver",
        "",
        "k8s.io/sample-apiserver",
        GoKind::Plain,
    ),
    go(
        "schedulerbench",
        "",
        "./schedulerbench",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "controllersbench",
        "",
        "./controllersbench",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go("protobuf", "", "./protobuf", GoKind::Plain),
    go(
        "crane",
        "addons",
        "github.com/google/go-containerregistry/cmd/crane",
        GoKind::Plain,
    ),
    go("coredns", "addons", "./coredns", GoKind::Plain),
    go(
        "kubeadm",
        "",
        "k8s.io/kubernetes/cmd/kubeadm",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go("kind", "kind", "sigs.k8s.io/kind", GoKind::Plain),
    go(
        "containerd",
        "node",
        "github.com/containerd/containerd/v2/cmd/containerd",
        GoKind::Containerd,
    ),
    go(
        "containerd-shim-runc-v2",
        "node",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        GoKind::Containerd,
    ),
    go(
        "ctr",
        "node",
        "github.com/containerd/containerd/v2/cmd/ctr",
        GoKind::Containerd,
    ),
    go("layerpeer", "node", "./layerpeer", GoKind::Plain),
    go(
        "runc",
        "node",
        "github.com/opencontainers/runc",
        GoKind::Runc,
    ),
    go(
        "cni/bridge",
        "node",
        "github.com/containernetworking/plugins/plugins/main/bridge",
        GoKind::Plain,
    ),
    go(
        "cni/loopback",
        "node",
        "github.com/containernetworking/plugins/plugins/main/loopback",
        GoKind::Plain,
    ),
    go(
        "cni/host-local",
        "node",
        "github.com/containernetworking/plugins/plugins/ipam/host-local",
        GoKind::Plain,
    ),
    go(
        "cni/portmap",
        "node",
        "github.com/containernetworking/plugins/plugins/meta/portmap",
        GoKind::Plain,
    ),
    go(
        "csi-provisioner",
        "csi",
        "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
        GoKind::Plain,
    ),
    go(
        "csi-attacher",
        "csi",
        "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
        GoKind::Plain,
    ),
    go(
        "csi-resizer",
        "csi",
        "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
        GoKind::Plain,
    ),
    go(
        "csi-snapshotter",
        "csi",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
        GoKind::Plain,
    ),
    go(
        "snapshot-controller",
        "csi",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
        GoKind::Plain,
    ),
    go(
        "csi-sanity",
        "csi",
        "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity",
        GoKind::Plain,
    ),
    go(
        "crictl",
        "cri",
        "sigs.k8s.io/cri-tools/cmd/crictl",
        GoKind::Plain,
    ),
    go(
        "critest",
        "cri",
        "sigs.k8s.io/cri-tools/cmd/critest",
        GoKind::PlainTest,
    ),
    go("helm-3", "helm", "helm.sh/helm/v3/cmd/helm", GoKind::Helm3),
    go("helm-4", "helm", "helm.sh/helm/v4/cmd/helm", GoKind::Plain),
    go(
        "metrics-server",
        "metricsserver",
        "sigs.k8s.io/metrics-server/cmd/metrics-server",
        GoKind::Plain,
    ),
    go(
        "descheduler",
        "descheduler",
        "sigs.k8s.io/descheduler/cmd/descheduler",
        GoKind::Plain,
    ),
    go(
        "kueue",
        "kueue",
        "sigs.k8s.io/kueue/cmd/kueue",
        GoKind::Plain,
    ),
    go(
        "prometheus-operator",
        "prometheusoperator",
        "github.com/prometheus-operator/prometheus-operator/cmd/operator",
        GoKind::Plain,
    ),
    go(
        "prometheus-config-reloader",
        "prometheusoperator",
        "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
        GoKind::Plain,
    ),
    go(
        "prometheus",
        "prometheus",
        "github.com/prometheus/prometheus/cmd/prometheus",
        GoKind::Plain,
    ),
    go(
        "argo-rollouts",
        "rollouts",
        "github.com/argoproj/argo-rollouts/cmd/rollouts-controller",
        GoKind::Plain,
    ),
    go(
        "local-path-provisioner",
        "localpath",
        "github.com/rancher/local-path-provisioner",
        GoKind::Plain,
    ),
];

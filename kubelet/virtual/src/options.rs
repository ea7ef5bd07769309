//! The command line of virtual-kubelet. Names are the kubelet's where it has such a flag.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use component_base::client::ClientConfig;
use component_base::flags::{FlagSet, Flags};
use component_base::options::{add_client_flags, client_config};

/// The component's name: user agent, certificate pair, source of events.
pub const COMPONENT: &str = "virtual-kubelet";
/// Nodes of one process.
const MAX_NODES: i64 = 100_000;

/// Everything that was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub client: ClientConfig,
    pub provider: String,
    pub provider_config: Option<PathBuf>,
    /// `PREFIX-0`, `PREFIX-1`, …
    pub node_names: Vec<String>,
    /// Where the API server reaches this process; `None`: found out.
    pub node_ip: Option<IpAddr>,
    /// `None`: nothing is served but health.
    pub address: Option<SocketAddr>,
    pub healthz: Option<SocketAddr>,
    pub cert_dir: PathBuf,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    pub client_ca_file: Option<PathBuf>,
    pub anonymous: bool,
    pub token_webhook: bool,
    pub always_allow: bool,
    pub token_ttl: Duration,
    pub allow_ttl: Duration,
    pub deny_ttl: Duration,
    pub streaming_idle_timeout: Duration,
}

/// A flag whose value cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid argument {value:?} for \"--{flag}\" flag: {reason}")]
pub struct OptionsError {
    pub flag: &'static str,
    pub value: String,
    pub reason: String,
}

/// Every flag.
pub fn flag_set() -> FlagSet {
    let mut flags = FlagSet::new(
        COMPONENT,
        "Nodes that need no machine: a kubelet's loops for many nodes in one process, whose pods a provider makes real. See kubelet/virtual/README.md.",
    );
    flags.string(
        "provider",
        "",
        "Who makes pods real: simulated, process or remote. Required.",
    );
    flags.string("provider-config", "", "A VirtualKubeletConfiguration file: what nodes say of themselves, and what the provider needs.");
    flags.int("nodes", 1, "Number of nodes of this process.");
    flags.string(
        "node-name-prefix",
        "virtual",
        "Nodes are called PREFIX-0, PREFIX-1, and so on.",
    );
    flags.string("node-ip", "", "The address where the API server reaches this process for logs, exec, attach and port-forward. Empty: the one this machine reaches the API server from.");
    flags.string("address", "0.0.0.0", "The IP address to serve on.");
    flags.int(
        "port",
        10250,
        "The port to serve on, one for all nodes of the process. 0 serves nothing.",
    );
    flags.string(
        "healthz-bind-address",
        "127.0.0.1",
        "The IP address for the healthz server to serve on.",
    );
    flags.int(
        "healthz-port",
        10248,
        "The port of the localhost healthz endpoint (set to 0 to disable).",
    );
    flags.string("cert-dir", "/var/lib/virtual-kubelet/pki", "The directory where the TLS certs are located. If --tls-cert-file and --tls-private-key-file are provided, this flag will be ignored.");
    flags.string("tls-cert-file", "", "File containing x509 Certificate used for serving HTTPS. If not provided, a self-signed certificate and key are generated and saved to the directory passed to --cert-dir.");
    flags.string(
        "tls-private-key-file",
        "",
        "File containing x509 private key matching --tls-cert-file.",
    );
    flags.string("client-ca-file", "", "If set, any request presenting a client certificate signed by one of the authorities in the client-ca-file is authenticated with an identity corresponding to the CommonName of the client certificate. Empty: the authority in configmap/extension-apiserver-authentication in kube-system is used.");
    flags.bool("anonymous-auth", false, "Enables anonymous requests. Anonymous requests have a username of system:anonymous, and a group name of system:unauthenticated.");
    flags.bool(
        "authentication-token-webhook",
        true,
        "Use the TokenReview API to determine authentication for bearer tokens.",
    );
    flags.duration(
        "authentication-token-webhook-cache-ttl",
        Duration::from_secs(120),
        "The duration to cache responses from the webhook token authenticator.",
    );
    flags.string("authorization-mode", "Webhook", "Authorization mode. Valid options are AlwaysAllow or Webhook. Webhook mode uses the SubjectAccessReview API to determine authorization.");
    flags.duration(
        "authorization-webhook-cache-authorized-ttl",
        Duration::from_secs(300),
        "The duration to cache 'authorized' responses from the webhook authorizer.",
    );
    flags.duration(
        "authorization-webhook-cache-unauthorized-ttl",
        Duration::from_secs(30),
        "The duration to cache 'unauthorized' responses from the webhook authorizer.",
    );
    flags.duration("streaming-connection-idle-timeout", Duration::from_secs(4 * 3600), "Maximum time a streaming connection can be idle before the connection is automatically closed. 0 indicates no timeout.");
    // DIFFERS: a kubelet has 50 and 100 for one node.
    add_client_flags(&mut flags, 500.0, 1000);
    flags
}

impl Options {
    /// Reads the flags.
    ///
    /// # Errors
    /// Names the flag and its value.
    pub fn from_flags(flags: &Flags) -> Result<Self, OptionsError> {
        let error = |flag, value: &str, reason: &str| OptionsError {
            flag,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        let provider = flags.string("provider").to_owned();
        if provider.is_empty() {
            let names = crate::providers::NAMES.join(" or ");
            return Err(error("provider", "", &format!("must be {names}")));
        }
        let nodes = flags.int("nodes");
        if !(1..=MAX_NODES).contains(&nodes) {
            let reason = format!("must be between 1 and {MAX_NODES}, inclusive");
            return Err(error("nodes", &nodes.to_string(), &reason));
        }
        let prefix = flags.string("node-name-prefix");
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        let first = prefix.chars().next();
        if !first.is_some_and(|c| c.is_ascii_alphanumeric())
            || !prefix.chars().all(is_name)
            || prefix.len() > 240
        {
            return Err(error(
                "node-name-prefix",
                prefix,
                "must be the begin of a name: lower case letters, digits, '-' and '.', at most 240 of them",
            ));
        }
        let ip = |flag: &'static str| {
            let text = flags.string(flag);
            let parsed = text.parse::<IpAddr>();
            parsed.map_err(|_| error(flag, text, "must be an IP address"))
        };
        let socket = |ip: IpAddr, flag: &'static str| {
            let port = flags.int(flag);
            let parsed = u16::try_from(port);
            let parsed = parsed.map_err(|_| {
                error(
                    flag,
                    &port.to_string(),
                    "must be between 0 and 65535, inclusive",
                )
            });
            parsed.map(|port| (port > 0).then(|| SocketAddr::new(ip, port)))
        };
        let mode = flags.string("authorization-mode");
        if !["Webhook", "AlwaysAllow"].contains(&mode) {
            return Err(error(
                "authorization-mode",
                mode,
                "must be \"Webhook\" or \"AlwaysAllow\"",
            ));
        }
        let node_ip = match flags.optional("node-ip") {
            Some(_) => Some(ip("node-ip")?),
            None => None,
        };
        let path = |name| flags.optional(name).map(PathBuf::from);
        Ok(Self {
            client: client_config(flags, COMPONENT),
            provider,
            provider_config: path("provider-config"),
            node_names: (0..nodes).map(|at| format!("{prefix}-{at}")).collect(),
            node_ip,
            address: socket(ip("address")?, "port")?,
            healthz: socket(ip("healthz-bind-address")?, "healthz-port")?,
            cert_dir: PathBuf::from(flags.string("cert-dir")),
            tls_cert_file: path("tls-cert-file"),
            tls_private_key_file: path("tls-private-key-file"),
            client_ca_file: path("client-ca-file"),
            anonymous: flags.bool("anonymous-auth"),
            token_webhook: flags.bool("authentication-token-webhook"),
            always_allow: mode == "AlwaysAllow",
            token_ttl: flags.duration("authentication-token-webhook-cache-ttl"),
            allow_ttl: flags.duration("authorization-webhook-cache-authorized-ttl"),
            deny_ttl: flags.duration("authorization-webhook-cache-unauthorized-ttl"),
            streaming_idle_timeout: flags.duration("streaming-connection-idle-timeout"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Options, String> {
        let args = args.iter().map(|a| (*a).to_owned());
        let flags = flag_set().parse(args).map_err(|e| e.to_string())?;
        Options::from_flags(&flags).map_err(|e| e.to_string())
    }

    #[test]
    fn nodes_are_numbered() {
        let options = read(&[
            "--provider=simulated",
            "--nodes",
            "2",
            "--node-name-prefix=v",
        ])
        .unwrap();
        assert_eq!(options.node_names, ["v-0", "v-1"]);
        assert_eq!(options.address.unwrap().port(), 10250);
        let options = read(&["--provider=simulated", "--port=0"]).unwrap();
        assert_eq!(options.address, None);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |args: &[&str], expect: &str| {
            let error = read(args).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check(&[], "\"--provider\"");
        check(&["--provider=x", "--nodes=0"], "\"--nodes\"");
        check(
            &["--provider=x", "--node-name-prefix=A_"],
            "\"--node-name-prefix\"",
        );
        check(&["--provider=x", "--port=70000"], "\"--port\"");
        check(&["--provider=x", "--node-ip=here"], "\"--node-ip\"");
        check(
            &["--provider=x", "--authorization-mode=RBAC"],
            "\"--authorization-mode\"",
        );
    }
}

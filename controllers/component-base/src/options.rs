//! Groups of flags that several binaries share, and what they turn into: secure serving, leader election, client connection.
//!
//! Upstream: `SecureServingOptions`, `DelegatingAuthenticationOptions`, `DelegatingAuthorizationOptions` in
//! `k8s.io/apiserver/pkg/server/options`, and `LeaderElectionConfiguration` in `k8s.io/component-base/config`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

use crate::client::{ClientConfig, ClientError};
use crate::flags::{FlagSet, Flags, Value};
use crate::informer::{Informer, InformerOptions};
use crate::leader_election::LeaderElectionConfig;
use crate::serving::{
    AccessControl, Authorization, DelegatedAuthentication, DelegatedAuthorization, SecureServer,
    ServingError, listen,
};
use crate::shutdown::Shutdown;
use crate::tls::{ServerTls, TlsError, TlsOptions, default_names};

/// Where API servers publish the CA of their clients.
const AUTHENTICATION_NAMESPACE: &str = "kube-system";
const AUTHENTICATION_CONFIG_MAP: &str = "extension-apiserver-authentication";
const CLIENT_CA_KEY: &str = "client-ca-file";

/// Why the secure server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// A flag's value cannot be used.
    #[error("invalid value {value:?} for --{flag}: {reason}")]
    Invalid {
        /// The flag, without dashes.
        flag: &'static str,
        /// What was given.
        value: String,
        /// Why not.
        reason: String,
    },
    /// Certificate or client CA.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// A kubeconfig of delegated access.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file named by a flag.
    #[error("unable to load --{flag} {path}: {source}")]
    File {
        /// The flag, without dashes.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The cluster's client CA could not be read and `--authentication-tolerate-lookup-failure` is not set.
    #[error("unable to load configmap based client CA file: {0}")]
    Lookup(#[source] Box<kube::Error>),
}

/// Secure serving with delegated authentication and authorization, as kube-scheduler and kube-controller-manager have it.
#[derive(Clone, Debug)]
pub struct ServingOptions {
    bind_address: IpAddr,
    /// `--secure-port`; 0 means no secure serving.
    pub secure_port: u16,
    tls: TlsOptions,
    client_ca_file: Option<PathBuf>,
    authentication_kubeconfig: Option<PathBuf>,
    authentication_skip_lookup: bool,
    authentication_tolerate_lookup_failure: bool,
    authentication_cache_ttl: Duration,
    authorization_kubeconfig: Option<PathBuf>,
    authorization_allow_ttl: Duration,
    authorization_deny_ttl: Duration,
    always_allow_paths: Vec<String>,
}

impl ServingOptions {
    /// Declares the flags.
    pub fn add_flags(flags: &mut FlagSet, default_port: u16) {
        flags.string(
            "bind-address",
            "0.0.0.0",
            "The IP address on which to listen for the --secure-port port.",
        );
        flags.int("secure-port", i64::from(default_port), "The port on which to serve HTTPS with authentication and authorization. If 0, don't serve HTTPS at all.");
        flags.string("cert-dir", "", "The directory where the TLS certs are located. If --tls-cert-file and --tls-private-key-file are provided, this flag will be ignored.");
        flags.string(
            "tls-cert-file",
            "",
            "File containing the default x509 Certificate for HTTPS.",
        );
        flags.string(
            "tls-private-key-file",
            "",
            "File containing the default x509 private key matching --tls-cert-file.",
        );
        flags.list(
            "tls-cipher-suites",
            &[],
            "Comma-separated list of cipher suites for the server.",
        );
        flags.string(
            "tls-min-version",
            "",
            "Minimum TLS version supported. Possible values: VersionTLS12, VersionTLS13",
        );
        flags.string("client-ca-file", "", "If set, any request presenting a client certificate signed by one of the authorities in the client-ca-file is authenticated with an identity corresponding to the CommonName of the client certificate.");
        flags.string("authentication-kubeconfig", "", "kubeconfig file pointing at the 'core' kubernetes server with enough rights to create tokenreviews.authentication.k8s.io.");
        flags.bool("authentication-skip-lookup", false, "If false, the authentication-kubeconfig will be used to lookup missing authentication configuration from the cluster.");
        flags.bool("authentication-tolerate-lookup-failure", true, "If true, failures to look up missing authentication configuration from the cluster are not considered fatal.");
        flags.duration(
            "authentication-token-webhook-cache-ttl",
            Duration::from_secs(10),
            "The duration to cache responses from the webhook token authenticator.",
        );
        flags.string("authorization-kubeconfig", "", "kubeconfig file pointing at the 'core' kubernetes server with enough rights to create subjectaccessreviews.authorization.k8s.io.");
        flags.duration(
            "authorization-webhook-cache-authorized-ttl",
            Duration::from_secs(10),
            "The duration to cache 'authorized' responses from the webhook authorizer.",
        );
        flags.duration(
            "authorization-webhook-cache-unauthorized-ttl",
            Duration::from_secs(10),
            "The duration to cache 'unauthorized' responses from the webhook authorizer.",
        );
        flags.list(
            "authorization-always-allow-paths",
            &["/healthz", "/readyz", "/livez"],
            "A list of HTTP paths to skip during authorization.",
        );
        let text = || Value::String(String::new());
        let list = || Value::List(Vec::new());
        flags.unused(&[
            ("disable-http2-serving", Value::Bool(false)),
            ("http2-max-streams-per-connection", Value::Int(0)),
            ("permit-address-sharing", Value::Bool(false)),
            ("permit-port-sharing", Value::Bool(false)),
            ("tls-curve-preferences", list()),
            ("tls-sni-cert-key", list()),
            ("requestheader-allowed-names", list()),
            ("requestheader-client-ca-file", text()),
            ("requestheader-extra-headers-prefix", list()),
            ("requestheader-group-headers", list()),
            ("requestheader-uid-headers", list()),
            ("requestheader-username-headers", list()),
            ("allow-metric-labels", Value::Map(Default::default())),
            ("allow-metric-labels-manifest", text()),
            ("disabled-metrics", list()),
            ("show-hidden-metrics-for-version", text()),
            ("emulated-version", list()),
            ("emulation-forward-compatible", Value::Bool(false)),
            ("min-compatibility-version", list()),
        ]);
    }

    /// Reads the flags; `component` names the self-signed pair.
    ///
    /// # Errors
    /// An address or port that is none.
    pub fn from_flags(flags: &Flags, component: &str) -> Result<Self, OptionsError> {
        let bind = flags.string("bind-address");
        let bind_address: IpAddr = bind.parse().map_err(|_| OptionsError::Invalid {
            flag: "bind-address",
            value: bind.to_string(),
            reason: format!("failed to parse IP: {bind:?}"),
        })?;
        let port = flags.int("secure-port");
        let secure_port = u16::try_from(port).map_err(|_| OptionsError::Invalid {
            flag: "secure-port",
            value: port.to_string(),
            reason: "must be between 0 and 65535, inclusive. 0 for turning off secure port".into(),
        })?;
        let path = |name| flags.optional(name).map(PathBuf::from);
        Ok(Self {
            bind_address,
            secure_port,
            tls: TlsOptions {
                cert_file: path("tls-cert-file"),
                key_file: path("tls-private-key-file"),
                cert_dir: path("cert-dir"),
                pair_name: component.to_string(),
                names: default_names(bind_address),
                min_version: flags.string("tls-min-version").to_string(),
                cipher_suites: flags.list("tls-cipher-suites").to_vec(),
            },
            client_ca_file: path("client-ca-file"),
            authentication_kubeconfig: path("authentication-kubeconfig"),
            authentication_skip_lookup: flags.bool("authentication-skip-lookup"),
            authentication_tolerate_lookup_failure: flags
                .bool("authentication-tolerate-lookup-failure"),
            authentication_cache_ttl: flags.duration("authentication-token-webhook-cache-ttl"),
            authorization_kubeconfig: path("authorization-kubeconfig"),
            authorization_allow_ttl: flags.duration("authorization-webhook-cache-authorized-ttl"),
            authorization_deny_ttl: flags.duration("authorization-webhook-cache-unauthorized-ttl"),
            always_allow_paths: flags.list("authorization-always-allow-paths").to_vec(),
        })
    }

    /// Listens and serves `router` in a task until shutdown; returns the address, `None` when `--secure-port` is 0.
    ///
    /// # Errors
    /// See [`OptionsError`].
    pub async fn serve(
        self,
        router: Router,
        shutdown: Shutdown,
    ) -> Result<Option<SocketAddr>, OptionsError> {
        if self.secure_port == 0 {
            return Ok(None);
        }
        let client_ca = match &self.client_ca_file {
            None => None,
            Some(path) => Some(std::fs::read(path).map_err(|source| OptionsError::File {
                flag: "client-ca-file",
                path: path.clone(),
                source,
            })?),
        };
        let tls = ServerTls::new(self.tls.clone(), client_ca)?;
        tls.watch_files(self.client_ca_file.clone(), &shutdown)?;
        let client_of = async |path: &Option<PathBuf>| {
            let mut config = ClientConfig::new(&self.tls.pair_name);
            if let Some(path) = path {
                config.kubeconfig = Some(path.clone());
                return config.build().await.map(Some);
            }
            if !crate::client::in_cluster() {
                return Ok(None);
            }
            // As upstream: a pod's own account answers for its port; without one only the open paths do.
            match config.build().await {
                Ok(client) => Ok(Some(client)),
                Err(error) => {
                    tracing::warn!(%error, "failed to read in-cluster kubeconfig for delegated authentication and authorization");
                    Ok(None)
                }
            }
        };
        let authentication = client_of(&self.authentication_kubeconfig).await?;
        let authorization = client_of(&self.authorization_kubeconfig).await?;
        if let (Some(client), None, false) = (
            &authentication,
            &self.client_ca_file,
            self.authentication_skip_lookup,
        ) {
            self.look_up_client_ca(client, &tls, &shutdown).await?;
        }
        let authorization = match authorization {
            Some(client) => Authorization::Delegated(DelegatedAuthorization::new(
                client,
                self.authorization_allow_ttl,
                self.authorization_deny_ttl,
            )),
            // Without a kubeconfig and outside of a pod only the open paths and system:masters pass.
            None => Authorization::AllowNone,
        };
        let tokens = authentication
            .map(|client| DelegatedAuthentication::new(client, self.authentication_cache_ttl));
        let listener = listen(SocketAddr::new(self.bind_address, self.secure_port)).await?;
        let address = listener.local_addr().ok();
        let access = AccessControl::new(tokens, true, authorization)
            .always_allow_paths(self.always_allow_paths);
        tracing::info!(address = %SocketAddr::new(self.bind_address, self.secure_port), "Serving securely");
        shutdown.clone().spawn_essential(
            "secure server",
            SecureServer {
                listener,
                tls,
                access,
            }
            .serve(router, shutdown),
        );
        Ok(address)
    }

    /// Takes the client CA from the cluster's ConfigMap, now and whenever it changes.
    async fn look_up_client_ca(
        &self,
        client: &Client,
        tls: &ServerTls,
        shutdown: &Shutdown,
    ) -> Result<(), OptionsError> {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), AUTHENTICATION_NAMESPACE);
        let found = tokio::time::timeout(
            Duration::from_secs(10),
            api.get_opt(AUTHENTICATION_CONFIG_MAP),
        )
        .await;
        match found {
            Ok(Ok(map)) => set_client_ca(tls, map.as_ref())?,
            Ok(Err(error)) if !self.authentication_tolerate_lookup_failure => {
                return Err(OptionsError::Lookup(Box::new(error)));
            }
            _ => tracing::warn!(
                "Unable to get configmap/{AUTHENTICATION_CONFIG_MAP} in {AUTHENTICATION_NAMESPACE}; continuing without client CA until it can be read"
            ),
        }
        let options =
            InformerOptions::default().fields(format!("metadata.name={AUTHENTICATION_CONFIG_MAP}"));
        let informer = Informer::start(api, &options, shutdown);
        let (tls, shutdown) = (tls.clone(), shutdown.clone());
        shutdown.clone().spawn_guarded("client CA of the cluster", async move {
            let mut events = informer.subscribe();
            while let Some(Some(event)) = shutdown.run_until(events.recv()).await {
                if let Err(error) = set_client_ca(&tls, Some(event.object())) {
                    tracing::warn!(%error, "The cluster's client CA cannot be used, the old one stays");
                }
            }
        });
        Ok(())
    }
}

fn set_client_ca(tls: &ServerTls, map: Option<&ConfigMap>) -> Result<(), TlsError> {
    match map
        .and_then(|m| m.data.as_ref())
        .and_then(|d| d.get(CLIENT_CA_KEY))
    {
        Some(pem) => tls.set_client_ca(Some(pem.clone().into_bytes())),
        None => Ok(()),
    }
}

/// `--leader-elect*`.
pub struct LeaderElectionOptions {
    /// `--leader-elect`.
    pub enabled: bool,
    /// The rest.
    pub config: LeaderElectionConfig,
}

impl LeaderElectionOptions {
    /// Declares the flags with upstream's defaults.
    pub fn add_flags(flags: &mut FlagSet, resource_name: &str) {
        flags.bool(
            "leader-elect",
            true,
            "Start a leader election client and gain leadership before executing the main loop.",
        );
        flags.duration("leader-elect-lease-duration", Duration::from_secs(15), "The duration that non-leader candidates will wait after observing a leadership renewal until attempting to acquire leadership of a led but unrenewed leader slot.");
        flags.duration("leader-elect-renew-deadline", Duration::from_secs(10), "The interval between attempts by the acting master to renew a leadership slot before it stops leading.");
        flags.duration("leader-elect-retry-period", Duration::from_secs(2), "The duration the clients should wait between attempting acquisition and renewal of a leadership.");
        flags.string("leader-elect-resource-lock", "leases", "The type of resource object that is used for locking during leader election. Supported options are 'leases'.");
        flags.string(
            "leader-elect-resource-name",
            resource_name,
            "The name of resource object that is used for locking during leader election.",
        );
        flags.string(
            "leader-elect-resource-namespace",
            "kube-system",
            "The namespace of resource object that is used for locking during leader election.",
        );
    }

    /// Reads the flags.
    ///
    /// # Errors
    /// Times that do not fit, or a lock of another kind.
    pub fn from_flags(flags: &Flags) -> Result<Self, OptionsError> {
        let lock = flags.string("leader-elect-resource-lock");
        if lock != "leases" {
            return Err(OptionsError::Invalid {
                flag: "leader-elect-resource-lock",
                value: lock.to_string(),
                reason: "resourceLock value must be \"leases\"".into(),
            });
        }
        let config = LeaderElectionConfig {
            namespace: flags.string("leader-elect-resource-namespace").to_string(),
            name: flags.string("leader-elect-resource-name").to_string(),
            lease_duration: flags.duration("leader-elect-lease-duration"),
            renew_deadline: flags.duration("leader-elect-renew-deadline"),
            retry_period: flags.duration("leader-elect-retry-period"),
            ..LeaderElectionConfig::new("")
        };
        let enabled = flags.bool("leader-elect");
        if enabled && let Err(error) = config.validate() {
            return Err(OptionsError::Invalid {
                flag: "leader-elect-lease-duration",
                value: crate::duration::format(config.lease_duration),
                reason: error.to_string(),
            });
        }
        Ok(Self { enabled, config })
    }
}

/// Declares `--kubeconfig`, `--master`, `--kube-api-qps`, `--kube-api-burst` and `--kube-api-content-type`.
pub fn add_client_flags(flags: &mut FlagSet, qps: f64, burst: i64) {
    flags.string("kubeconfig", "", "Path to kubeconfig file with authorization and master location information (the master location can be overridden by the master flag).");
    flags.string(
        "master",
        "",
        "The address of the Kubernetes API server (overrides any value in kubeconfig).",
    );
    flags.float(
        "kube-api-qps",
        qps,
        "QPS to use while talking with kubernetes apiserver.",
    );
    flags.int(
        "kube-api-burst",
        burst,
        "Burst to use while talking with kubernetes apiserver.",
    );
    flags.unused(&[(
        "kube-api-content-type",
        Value::String("application/vnd.kubernetes.protobuf".into()),
    )]);
}

/// The client configuration these flags describe.
pub fn client_config(flags: &Flags, component: &str) -> ClientConfig {
    ClientConfig {
        kubeconfig: flags.optional("kubeconfig").map(PathBuf::from),
        master: flags.optional("master").map(ToString::to_string),
        qps: flags.float("kube-api-qps") as f32,
        burst: u32::try_from(flags.int("kube-api-burst")).unwrap_or(1),
        ..ClientConfig::new(component)
    }
}

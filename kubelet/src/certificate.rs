//! The kubelet's certificates, by CertificateSigningRequest.
//!
//! Owns: the client certificate of a new node (`--bootstrap-kubeconfig`), its renewal, and the kubeconfig that names it; the
//! serving certificate where `serverTLSBootstrap` asks for one. Private keys never leave the node. Upstream:
//! `pkg/kubelet/certificate`, v1.36.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::TryStreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long a request may wait for its approval; upstream: `certificateWaitTimeout`.
const WAIT_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// After a renewal that failed.
const ROTATION_RETRY: Duration = Duration::from_secs(60);
/// Between two looks at a request when the watch ended.
const RETRY: Duration = Duration::from_secs(2);

/// Why there is no certificate; a retry may help.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("make a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error("certificate signing request: {0}")]
    Api(#[from] kube::Error),
    #[error("certificate signing request {0} was denied: {1}")]
    Denied(String, String),
    #[error("certificate signing request {0} failed: {1}")]
    Failed(String, String),
    #[error("certificate signing request {0} was not signed in time")]
    Timeout(String),
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}: no usable certificate in it")]
    NoCertificate(PathBuf),
    #[error("kubeconfig {path}: {reason}")]
    Kubeconfig { path: PathBuf, reason: String },
}

/// What a certificate is asked for.
pub struct Request {
    common_name: String,
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    signer: &'static str,
    usages: &'static [&'static str],
}

impl Request {
    /// For talking to the API server.
    pub fn client(node_name: &str) -> Self {
        Self {
            common_name: format!("system:node:{node_name}"),
            dns_names: vec![],
            addresses: vec![],
            signer: CLIENT_SIGNER,
            usages: &["digital signature", "client auth"],
        }
    }

    /// For being talked to on port 10250.
    pub fn serving(node_name: &str, hostname: &str, addresses: &[IpAddr]) -> Self {
        Self {
            common_name: format!("system:node:{node_name}"),
            dns_names: vec![hostname.to_owned()],
            addresses: addresses.to_vec(),
            signer: SERVING_SIGNER,
            usages: &["digital signature", "server auth"],
        }
    }

    fn csr(&self, key: &KeyPair) -> Result<String, CertificateError> {
        let mut params = CertificateParams::new(self.dns_names.clone())?;
        params
            .subject_alt_names
            .extend(self.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "system:nodes");
        name.push(DnType::CommonName, self.common_name.clone());
        params.distinguished_name = name;
        Ok(params.serialize_request(key)?.pem()?)
    }

    /// Asks and waits. Returns certificate and key in PEM, one after the other.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub async fn obtain(&self, client: &kube::Client) -> Result<Vec<u8>, CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut request = CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                request: ByteString(self.csr(&key)?.into_bytes()),
                signer_name: self.signer.to_owned(),
                usages: Some(self.usages.iter().map(|u| (*u).to_owned()).collect()),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        request.metadata.generate_name = Some("csr-".to_owned());
        let api: Api<CertificateSigningRequest> = Api::all(client.clone());
        let made = api.create(&PostParams::default(), &request).await?;
        let name = made.metadata.name.unwrap_or_default();
        tracing::info!(
            name,
            signer = self.signer,
            "waiting for the certificate to be issued"
        );
        let signed = tokio::time::timeout(WAIT_TIMEOUT, wait_for_certificate(&api, &name))
            .await
            .map_err(|_| CertificateError::Timeout(name))??;
        let mut pem = signed;
        if !pem.ends_with(b"\n") {
            pem.push(b'\n');
        }
        pem.extend(key.serialize_pem().into_bytes());
        Ok(pem)
    }
}

/// The outcome, if there is one yet.
fn outcome(csr: &CertificateSigningRequest) -> Result<Option<Vec<u8>>, CertificateError> {
    let name = csr.metadata.name.clone().unwrap_or_default();
    let Some(status) = &csr.status else {
        return Ok(None);
    };
    for condition in status.conditions.iter().flatten() {
        let message = condition.message.clone().unwrap_or_default();
        match condition.type_.as_str() {
            "Denied" => return Err(CertificateError::Denied(name, message)),
            "Failed" => return Err(CertificateError::Failed(name, message)),
            _ => {}
        }
    }
    Ok(status
        .certificate
        .as_ref()
        .map(|c| c.0.clone())
        .filter(|c| !c.is_empty()))
}

async fn wait_for_certificate(
    api: &Api<CertificateSigningRequest>,
    name: &str,
) -> Result<Vec<u8>, CertificateError> {
    loop {
        let found = api.get(name).await?;
        if let Some(pem) = outcome(&found)? {
            return Ok(pem);
        }
        let version = found.metadata.resource_version.unwrap_or_default();
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        if let Ok(stream) = api.watch(&params, &version).await {
            let mut stream = std::pin::pin!(stream);
            while let Ok(Some(event)) = stream.try_next().await {
                if let WatchEvent::Modified(csr) | WatchEvent::Added(csr) = event
                    && let Some(pem) = outcome(&csr)?
                {
                    return Ok(pem);
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Certificate and key in one file, with a link to the newest, as upstream keeps them.
#[derive(Clone, Debug)]
pub struct FileStore {
    dir: PathBuf,
    pair: &'static str,
}

impl FileStore {
    pub fn client(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            pair: "kubelet-client",
        }
    }

    pub fn server(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            pair: "kubelet-server",
        }
    }

    /// `<dir>/<pair>-current.pem`
    pub fn current_path(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.pair))
    }

    /// Keeps the pair and points the link at it.
    ///
    /// # Errors
    /// I/O; the old pair stands.
    pub fn update(&self, pem: &[u8]) -> Result<PathBuf, CertificateError> {
        let now = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let path = self.dir.join(format!("{}-{now}.pem", self.pair));
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |source| CertificateError::Io { path, source }
        };
        std::fs::create_dir_all(&self.dir).map_err(fail(&self.dir))?;
        host::atomic_file::write(&path, pem).map_err(fail(&path))?;
        let current = self.current_path();
        let next = self.dir.join(format!(".{}-next", self.pair));
        // Left by a crash between the two steps below.
        let _ = std::fs::remove_file(&next);
        std::os::unix::fs::symlink(&path, &next).map_err(fail(&next))?;
        std::fs::rename(&next, &current).map_err(fail(&current))?;
        Ok(current)
    }

    /// The present pair: PEM, and from when to when it holds.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn current(&self) -> Result<(Vec<u8>, Validity), CertificateError> {
        let path = self.current_path();
        let pem = std::fs::read(&path).map_err(|source| CertificateError::Io {
            path: path.clone(),
            source,
        })?;
        let validity = validity(&pem).ok_or(CertificateError::NoCertificate(path))?;
        Ok((pem, validity))
    }
}

/// From when to when a certificate holds, in seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: i64,
    pub not_after: i64,
}

impl Validity {
    pub fn is_valid(&self, now: Timestamp) -> bool {
        (self.not_before..self.not_after).contains(&now.as_second())
    }

    /// Between 70 and 90 % of its life, as upstream's `nextRotationDeadline`.
    pub fn rotation_deadline(&self, random: f64) -> i64 {
        let life = (self.not_after - self.not_before) as f64;
        self.not_before + (life * (0.7 + 0.2 * random)) as i64
    }
}

/// Of the first certificate in a PEM.
pub fn validity(pem: &[u8]) -> Option<Validity> {
    let certs = component_base::tls::certificates("certificate", pem).ok()?;
    let (_, cert) = x509_parser::parse_x509_certificate(certs.first()?).ok()?;
    Some(Validity {
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
    })
}

/// Renews the client certificate in time, for as long as `kubeconfig` names the one kept in `cert_dir`. Returns after each
/// renewal: the caller starts anew with it. `false`: there is nothing to renew, or the kubelet ends.
pub async fn rotate_client_cert(
    client: &kube::Client,
    kubeconfig: &Path,
    cert_dir: &Path,
    node_name: &str,
    shutdown: &component_base::shutdown::Shutdown,
) -> bool {
    let store = FileStore::client(cert_dir);
    let names_the_store = kube::config::Kubeconfig::read_from(kubeconfig).is_ok_and(|config| {
        config
            .auth_infos
            .iter()
            .filter_map(|a| a.auth_info.as_ref())
            .any(|user| {
                user.client_certificate.as_deref().map(Path::new)
                    == Some(store.current_path().as_path())
            })
    });
    if !names_the_store {
        tracing::info!("the kubeconfig names a client certificate of its own, it is not rotated");
        return false;
    }
    loop {
        let wait = match store.current() {
            Ok((_, validity)) => {
                crate::metrics::CERTIFICATE_EXPIRATION
                    .set(validity.not_after - Timestamp::now().as_second());
                let deadline = validity.rotation_deadline(rand::random());
                u64::try_from(deadline - Timestamp::now().as_second()).unwrap_or(0)
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the client certificate");
                ROTATION_RETRY.as_secs()
            }
        };
        if shutdown
            .run_until(tokio::time::sleep(Duration::from_secs(wait)))
            .await
            .is_none()
        {
            return false;
        }
        tracing::info!("rotating certificates");
        let Some(obtained) = shutdown
            .run_until(Request::client(node_name).obtain(client))
            .await
        else {
            return false;
        };
        match obtained.and_then(|pem| store.update(&pem)) {
            Ok(_) => return true,
            Err(error) => {
                crate::metrics::CLIENT_RENEW_ERRORS.inc();
                tracing::error!(%error, "certificate rotation failed, will retry");
            }
        }
        if shutdown
            .run_until(tokio::time::sleep(ROTATION_RETRY))
            .await
            .is_none()
        {
            return false;
        }
    }
}

/// The kubeconfig's own client certificate, if it still holds.
fn is_client_config_still_valid(path: &Path) -> bool {
    let Ok(config) = kube::config::Kubeconfig::read_from(path) else {
        return false;
    };
    let user = config.auth_infos.first().and_then(|a| a.auth_info.as_ref());
    let Some(user) = user else { return false };
    if user.token.is_some() || user.token_file.is_some() {
        return true;
    }
    let pem = match (&user.client_certificate, &user.client_certificate_data) {
        (Some(file), _) => std::fs::read(file).ok(),
        (None, Some(data)) => {
            serde_json::from_value::<ByteString>(serde_json::Value::String(data.clone()))
                .ok()
                .map(|b| b.0)
        }
        // Another kind of credential: not ours to judge.
        (None, None) => return true,
    };
    pem.and_then(|p| validity(&p))
        .is_some_and(|v| v.is_valid(Timestamp::now()))
}

/// Keeps the pair that stands in `kubeconfig` itself as the current one, where none is kept yet: whoever writes kubeconfigs
/// (`kubeadm init`) points it there afterwards, and from then on it is renewed. `false`: there is nothing to keep.
///
/// Upstream: `getCurrentCertificateOrBootstrap` of `client-go/util/certificate`, v1.37, which stores it at once, too.
/// DIFFERS: upstream renews it and uses the new one from then on although the kubeconfig names another; here the kubeconfig's word counts.
///
/// # Errors
/// The kubeconfig cannot be read, or the pair not written.
pub fn keep_inline_pair(kubeconfig: &Path, cert_dir: &Path) -> Result<bool, CertificateError> {
    let store = FileStore::client(cert_dir);
    if store.current().is_ok() {
        return Ok(false);
    }
    let text = std::fs::read_to_string(kubeconfig).map_err(|source| CertificateError::Io {
        path: kubeconfig.to_path_buf(),
        source,
    })?;
    let Some(pem) = inline_pair(&text).map_err(|reason| CertificateError::Kubeconfig {
        path: kubeconfig.to_path_buf(),
        reason,
    })?
    else {
        return Ok(false);
    };
    if !validity(&pem).is_some_and(|v| v.is_valid(Timestamp::now())) {
        return Ok(false);
    }
    store.update(&pem)?;
    Ok(true)
}

/// Certificate and key of the current context's user, if they stand in the file itself.
fn inline_pair(kubeconfig: &str) -> Result<Option<Vec<u8>>, String> {
    let config: serde_json::Value =
        serde_saphyr::from_str(kubeconfig).map_err(|error| error.to_string())?;
    let named = |list: &str, name: &serde_json::Value| {
        config[list]
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| &entry["name"] == name)
    };
    let user = named("contexts", &config["current-context"])
        .and_then(|context| named("users", &context["context"]["user"]));
    let Some(user) = user.map(|user| &user["user"]) else {
        return Ok(None);
    };
    let data = |field: &str| {
        let value = user[field].clone();
        match value.as_str() {
            None | Some("") => Ok(None),
            Some(_) => serde_json::from_value::<ByteString>(value)
                .map(|bytes| Some(bytes.0))
                .map_err(|error| format!("{field}: {error}")),
        }
    };
    let (Some(mut pem), Some(key)) = (data("client-certificate-data")?, data("client-key-data")?)
    else {
        return Ok(None);
    };
    if !pem.ends_with(b"\n") {
        pem.push(b'\n');
    }
    pem.extend(key);
    Ok(Some(pem))
}

/// Makes sure that `kubeconfig` exists and its certificate holds; asks for one with the bootstrap credentials if not.
///
/// # Errors
/// See [`CertificateError`]; the caller tries again.
pub async fn load_client_cert(
    kubeconfig: &Path,
    bootstrap: &Path,
    cert_dir: &Path,
    node_name: &str,
) -> Result<(), CertificateError> {
    if is_client_config_still_valid(kubeconfig) {
        return Ok(());
    }
    tracing::info!(bootstrap = %bootstrap.display(), "using bootstrap kubeconfig to generate TLS client cert, key and kubeconfig file");
    let bad = |reason: String| CertificateError::Kubeconfig {
        path: bootstrap.to_path_buf(),
        reason,
    };
    let mut client_config = component_base::client::ClientConfig::new("kubelet-bootstrap");
    client_config.kubeconfig = Some(bootstrap.to_path_buf());
    let client = client_config
        .build()
        .await
        .map_err(|e| bad(e.to_string()))?;
    let pem = Request::client(node_name).obtain(&client).await?;
    let current = FileStore::client(cert_dir).update(&pem)?;
    write_kubeconfig(kubeconfig, bootstrap, &current)
}

/// The bootstrap kubeconfig's cluster with the new certificate.
fn write_kubeconfig(path: &Path, bootstrap: &Path, pem: &Path) -> Result<(), CertificateError> {
    let bad = |reason: String| CertificateError::Kubeconfig {
        path: bootstrap.to_path_buf(),
        reason,
    };
    let text = std::fs::read_to_string(bootstrap).map_err(|source| CertificateError::Io {
        path: bootstrap.to_path_buf(),
        source,
    })?;
    let from: serde_json::Value = serde_saphyr::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let context = from["current-context"].as_str().unwrap_or_default();
    let find = |list: &str, name: &str| {
        from[list]
            .as_array()
            .into_iter()
            .flatten()
            .find(|e| e["name"].as_str() == Some(name))
            .cloned()
    };
    let context =
        find("contexts", context).ok_or_else(|| bad("has no current context".to_owned()))?;
    let cluster_name = context["context"]["cluster"].as_str().unwrap_or_default();
    let mut cluster = find("clusters", cluster_name)
        .ok_or_else(|| bad(format!("has no cluster {cluster_name:?}")))?["cluster"]
        .take();
    // A relative CA file means: beside the bootstrap kubeconfig.
    if let Some(ca) = cluster["certificate-authority"].as_str().map(PathBuf::from)
        && ca.is_relative()
        && let Some(dir) = bootstrap.parent()
    {
        cluster["certificate-authority"] = dir.join(ca).display().to_string().into();
    }
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "default-cluster", "cluster": cluster }],
        "contexts": [{
            "name": "default-context",
            "context": { "cluster": "default-cluster", "namespace": "default", "user": "default-auth" },
        }],
        "current-context": "default-context",
        "users": [{
            "name": "default-auth",
            "user": { "client-certificate": pem.display().to_string(), "client-key": pem.display().to_string() },
        }],
    });
    // JSON is YAML; every reader of kubeconfigs takes it.
    let text = serde_json::to_vec_pretty(&config).map_err(|e| bad(e.to_string()))?;
    host::atomic_file::write(path, &text).map_err(|source| CertificateError::Io {
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_follows_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::client(dir.path());
        let (cert, key) = component_base::tls::generate_self_signed(&["n".to_owned()]).unwrap();
        let pem = [cert, key].concat();
        store.update(&pem).unwrap();
        let (read, validity) = store.current().unwrap();
        assert_eq!(read, pem);
        assert!(validity.is_valid(Timestamp::now()));
        let deadline = validity.rotation_deadline(0.5);
        assert!(deadline > validity.not_before && deadline < validity.not_after);
    }

    #[test]
    fn an_inline_pair_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = component_base::tls::generate_self_signed(&["n".to_owned()]).unwrap();
        let kubeconfig = dir.path().join("kubelet.conf");
        let inline = |bytes: &[u8]| serde_json::to_string(&ByteString(bytes.to_vec())).unwrap();
        let write = |user: &str| {
            let text = format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 users: [{{name: other, user: {{}}}}, {{name: u, user: {user}}}]\n"
            );
            std::fs::write(&kubeconfig, text).unwrap();
        };
        let pki = dir.path().join("pki");
        write("{client-certificate: /x, client-key: /x}");
        assert!(!keep_inline_pair(&kubeconfig, &pki).unwrap());
        write(&format!(
            "{{client-certificate-data: {}, client-key-data: {}}}",
            inline(&cert),
            inline(&key)
        ));
        assert!(keep_inline_pair(&kubeconfig, &pki).unwrap());
        let (kept, _) = FileStore::client(&pki).current().unwrap();
        assert_eq!(kept, [cert, key].concat());
        // What is kept is newer than what an old kubeconfig says.
        assert!(!keep_inline_pair(&kubeconfig, &pki).unwrap());
        write("{client-certificate-data: '%', client-key-data: '%'}");
        std::fs::remove_dir_all(&pki).unwrap();
        assert!(keep_inline_pair(&kubeconfig, &pki).is_err());
    }

    #[test]
    fn requests_name_the_node() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let pem = Request::serving("n1", "n1", &["10.0.0.1".parse().unwrap()])
            .csr(&key)
            .unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    }
}

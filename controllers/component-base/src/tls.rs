//! Certificates of servers: read from files and re-read when they change, or made at start.
//!
//! Never holds a client's credentials. Upstream: `k8s.io/apiserver/pkg/server/dynamiccertificates`, `k8s.io/client-go/util/cert`.

mod client_ca;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion};

pub use client_ca::ClientCa;

use crate::clock::Clock;
use crate::shutdown::Shutdown;
use crate::tasks::spawn_helper;

/// Why TLS material was refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// No certificate, no key, or damaged PEM.
    #[error("{what}: {message}")]
    Pem {
        /// The file or what else it is.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// Certificate and key do not fit, or the settings are impossible.
    #[error("TLS settings: {0}")]
    Rustls(#[from] rustls::Error),
    /// A certificate cannot be made.
    #[error("generating a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// A setting upstream knows in another form.
    #[error("{setting}: unsupported value {value:?}")]
    Unsupported {
        /// The flag or field.
        setting: &'static str,
        /// What was given.
        value: String,
    },
    /// No change notification from the kernel.
    #[error("watching {path}: {source}")]
    Watch {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Settings of a TLS server.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// `--tls-cert-file`; with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// `--tls-private-key-file`.
    pub key_file: Option<PathBuf>,
    /// `--cert-dir`: where a self-signed pair is kept when no files are given; `None` keeps it in memory.
    pub cert_dir: Option<PathBuf>,
    /// Name of the pair in `cert_dir` (`kubelet`, `kube-scheduler`).
    pub pair_name: String,
    /// Names and addresses of a self-signed certificate.
    pub names: Vec<String>,
    /// `--tls-min-version`: `VersionTLS12` (default when empty) or `VersionTLS13`.
    pub min_version: String,
    /// `--tls-cipher-suites`; empty means rustls' list.
    pub cipher_suites: Vec<String>,
}

/// A server's TLS configuration that follows its files; cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    inner: Arc<Inner>,
}

struct Inner {
    options: TlsOptions,
    current: ArcSwap<ServerConfig>,
    client_ca: ArcSwapOption<ClientCa>,
    state: Mutex<State>,
}

struct State {
    cert_pem: Vec<u8>,
    key_pem: Vec<u8>,
    client_ca: Option<Arc<ClientCa>>,
}

impl ServerTls {
    /// Reads or makes the certificate. `client_ca` is PEM; with it client certificates are asked for, and
    /// judged at each request by [`ClientCa::verify`].
    ///
    /// # Errors
    /// See [`TlsError`]; nothing of it goes away by itself.
    pub fn new(options: TlsOptions, client_ca: Option<Vec<u8>>) -> Result<Self, TlsError> {
        crate::client::install_crypto_provider();
        let (cert_pem, key_pem) = match (&options.cert_file, &options.key_file) {
            (Some(cert), Some(key)) => (read(cert)?, read(key)?),
            _ => self_signed_in(&options)?,
        };
        let client_ca = client_ca.map(|pem| ClientCa::parse(&pem)).transpose()?;
        let state = State {
            cert_pem,
            key_pem,
            client_ca: client_ca.map(Arc::new),
        };
        let config = server_config(&options, &state)?;
        let inner = Inner {
            options,
            current: ArcSwap::from_pointee(config),
            client_ca: ArcSwapOption::new(state.client_ca.clone()),
            state: Mutex::new(state),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The configuration for the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.inner.current.load_full()
    }

    /// The client CA in force.
    pub fn client_ca(&self) -> Option<Arc<ClientCa>> {
        self.inner.client_ca.load_full()
    }

    /// Replaces the client CA (PEM), for open connections too.
    ///
    /// # Errors
    /// When it holds no usable certificate; the old one stays.
    pub fn set_client_ca(&self, client_ca: Option<Vec<u8>>) -> Result<(), TlsError> {
        let client_ca = client_ca.map(|pem| ClientCa::parse(&pem)).transpose()?;
        self.update(|state| state.client_ca = client_ca.map(Arc::new))
    }

    /// Replaces the certificate chain and key (PEM).
    ///
    /// # Errors
    /// When they do not fit; the old ones stay.
    pub fn set_certificate(&self, cert_pem: Vec<u8>, key_pem: Vec<u8>) -> Result<(), TlsError> {
        self.update(|state| {
            state.cert_pem = cert_pem;
            state.key_pem = key_pem;
        })
    }

    fn update(&self, change: impl FnOnce(&mut State)) -> Result<(), TlsError> {
        let mut state = self
            .inner
            .state
            .lock()
            .expect("no panic while the lock is held");
        let mut next = State {
            cert_pem: state.cert_pem.clone(),
            key_pem: state.key_pem.clone(),
            client_ca: state.client_ca.clone(),
        };
        change(&mut next);
        self.inner
            .current
            .store(Arc::new(server_config(&self.inner.options, &next)?));
        self.inner.client_ca.store(next.client_ca.clone());
        *state = next;
        Ok(())
    }

    /// Follows the files until shutdown: a changed certificate, key or client CA holds for new connections.
    ///
    /// # Errors
    /// When the kernel gives no watch.
    pub fn watch_files(
        &self,
        client_ca_file: Option<PathBuf>,
        shutdown: &Shutdown,
    ) -> Result<(), TlsError> {
        let files: Vec<PathBuf> = [
            &self.inner.options.cert_file,
            &self.inner.options.key_file,
            &client_ca_file,
        ]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
        let Some(mut changes) = watch_files(&files)? else {
            return Ok(());
        };
        let (tls, end) = (self.clone(), shutdown.clone());
        shutdown.spawn_guarded("TLS files", async move {
            while let Some(Some(())) = end.run_until(changes.recv()).await {
                if let Err(error) = tls.reload(client_ca_file.as_deref()) {
                    tracing::warn!(%error, "Changed TLS files cannot be used, the old ones stay");
                }
            }
        });
        Ok(())
    }

    fn reload(&self, client_ca_file: Option<&Path>) -> Result<(), TlsError> {
        if let (Some(cert), Some(key)) =
            (&self.inner.options.cert_file, &self.inner.options.key_file)
        {
            self.set_certificate(read(cert)?, read(key)?)?;
        }
        if let Some(file) = client_ca_file {
            self.set_client_ca(Some(read(file)?))?;
        }
        Ok(())
    }
}

/// Signals after any of the files changed (through renames and symlinks, too); `None` when there are no files. Bursts are merged.
///
/// # Errors
/// When the kernel gives no watch.
pub fn watch_files(files: &[PathBuf]) -> Result<Option<tokio::sync::mpsc::Receiver<()>>, TlsError> {
    if files.is_empty() {
        return Ok(None);
    }
    let inotify = Inotify::init().map_err(|source| TlsError::Watch {
        path: files[0].clone(),
        source,
    })?;
    for file in files {
        // The directory, since editors, kubelet volumes and certificate managers replace files rather than write them.
        let directory = file
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mask =
            WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
        inotify
            .watches()
            .add(directory, mask)
            .map_err(|source| TlsError::Watch {
                path: directory.to_path_buf(),
                source,
            })?;
    }
    let watch = |source| TlsError::Watch {
        path: files[0].clone(),
        source,
    };
    let mut stream = inotify.into_event_stream([0u8; 4096]).map_err(watch)?;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    spawn_helper("watch of files", async move {
        loop {
            tokio::select! {
                event = stream.next() => match event {
                    // A full channel means that a reload is due anyway.
                    Some(Ok(_)) => drop(sender.try_send(())),
                    _ => return,
                },
                () = sender.closed() => return,
            }
        }
    });
    Ok(Some(receiver))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File {
        path: path.to_path_buf(),
        source,
    })
}

/// The certificates of a PEM text.
///
/// # Errors
/// When there is none, or it is damaged; `what` names the source in the error.
pub fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |message: String| TlsError::Pem {
        what: what.to_string(),
        message,
    };
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| error(e.to_string()))?;
    if list.is_empty() {
        Err(error("no certificate found".into()))
    } else {
        Ok(list)
    }
}

/// The private key of a PEM text.
///
/// # Errors
/// When there is none, or it is damaged.
pub fn private_key(what: &str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| TlsError::Pem {
        what: what.to_string(),
        message: e.to_string(),
    })
}

fn server_config(options: &TlsOptions, state: &State) -> Result<ServerConfig, TlsError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if !options.cipher_suites.is_empty() {
        let mut suites = Vec::new();
        for name in &options.cipher_suites {
            // Go leaves "_SHA256" off for the CHACHA20 suites in older names.
            let wanted = name.trim_end_matches("_SHA256");
            let suite = provider.cipher_suites.iter().find(|s| {
                format!("{:?}", s.suite())
                    .replace("TLS13_", "TLS_")
                    .trim_end_matches("_SHA256")
                    == wanted
            });
            match suite {
                Some(suite) => suites.push(*suite),
                None => tracing::warn!(
                    suite = name,
                    "The cipher suite is not offered by this build, left out"
                ),
            }
        }
        // TLS 1.3 suites cannot be chosen, as in Go.
        suites.extend(
            provider
                .cipher_suites
                .iter()
                .filter(|s| s.tls13().is_some())
                .copied(),
        );
        provider.cipher_suites = suites;
    }
    const TLS12_UP: &[&SupportedProtocolVersion] =
        &[&rustls::version::TLS13, &rustls::version::TLS12];
    let versions = match options.min_version.as_str() {
        "" | "VersionTLS12" | "VersionTLS10" | "VersionTLS11" => TLS12_UP,
        "VersionTLS13" => &TLS12_UP[..1],
        other => {
            return Err(TlsError::Unsupported {
                setting: "--tls-min-version",
                value: other.to_string(),
            });
        }
    };
    let provider = Arc::new(provider);
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = match &state.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let request = ca.handshake(provider.signature_verification_algorithms);
            builder.with_client_cert_verifier(Arc::new(request))
        }
    };
    let chain = certificates("server certificate", &state.cert_pem)?;
    let mut config = builder.with_single_cert(chain, private_key("server key", &state.key_pem)?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn self_signed_in(options: &TlsOptions) -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    let Some(directory) = &options.cert_dir else {
        return generate_self_signed(&options.names);
    };
    let cert_file = directory.join(format!("{}.crt", options.pair_name));
    let key_file = directory.join(format!("{}.key", options.pair_name));
    if cert_file.exists() && key_file.exists() {
        return Ok((read(&cert_file)?, read(&key_file)?));
    }
    let (cert, key) = generate_self_signed(&options.names)?;
    let write = |path: &Path, data: &[u8], mode: u32| -> Result<(), TlsError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let wrap = |source| TlsError::File {
            path: path.to_path_buf(),
            source,
        };
        let mut open = std::fs::OpenOptions::new();
        let mut file = open
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(path)
            .map_err(wrap)?;
        file.write_all(data)
            .and_then(|()| file.sync_all())
            .map_err(wrap)
    };
    std::fs::create_dir_all(directory).map_err(|source| TlsError::File {
        path: directory.clone(),
        source,
    })?;
    write(&key_file, &key, 0o600)?;
    write(&cert_file, &cert, 0o644)?;
    Ok((cert, key))
}

/// A self-signed pair (certificate, key; both PEM) for names and addresses, good for a year, with a CA of its own in the chain.
///
/// # Errors
/// When a name is no valid one.
pub fn generate_self_signed(names: &[String]) -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyPair, KeyUsagePurpose,
    };
    let host = names.first().cloned().unwrap_or_else(|| "localhost".into());
    let (start, end) = validity();
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.distinguished_name.push(
        DnType::CommonName,
        format!("{host}-ca@{}", Clock::real().now().as_second()),
    );
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    (ca.not_before, ca.not_after) = (start, end);
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate()?;
    // CertificateParams::new tells addresses from names.
    let names = if names.is_empty() {
        vec![host.clone()]
    } else {
        names.to_vec()
    };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(
        DnType::CommonName,
        format!("{host}@{}", Clock::real().now().as_second()),
    );
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (params.not_before, params.not_after) = (start, end);
    let cert = params.signed_by(&key, &issuer)?;
    Ok((
        (cert.pem() + &ca_cert.pem()).into_bytes(),
        key.serialize_pem().into_bytes(),
    ))
}

/// An hour ago (for clocks that differ) to a year from now.
fn validity() -> (time::OffsetDateTime, time::OffsetDateTime) {
    let now = time::OffsetDateTime::now_utc();
    (
        now - time::Duration::hours(1),
        now + time::Duration::days(365),
    )
}

/// The names a component's self-signed certificate carries: its host name, `localhost`, and the address it binds to.
pub fn default_names(bind: IpAddr) -> Vec<String> {
    let mut names = vec![
        crate::events::hostname(),
        "localhost".to_string(),
        "127.0.0.1".to_string(),
    ];
    if !bind.is_unspecified() && !bind.is_loopback() {
        names.push(bind.to_string());
    }
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn self_signed_serves() {
        let options = TlsOptions {
            names: default_names([127, 0, 0, 1].into()),
            ..TlsOptions::default()
        };
        let tls = ServerTls::new(options, None).unwrap();
        let (cert, _) = generate_self_signed(&["localhost".into()]).unwrap();
        tls.set_client_ca(Some(cert)).unwrap();
        assert!(tls.set_client_ca(Some(b"none".to_vec())).is_err());
        let old = TlsOptions {
            min_version: "VersionTLS9".into(),
            ..TlsOptions::default()
        };
        assert!(matches!(
            ServerTls::new(old, None),
            Err(TlsError::Unsupported { .. })
        ));
    }
}

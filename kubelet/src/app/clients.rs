//! The kubelet's clients of the API server: one for each kind of work that must not wait for another.
//!
//! Owns: who asks by which client, and each client's budget. Upstream: `cmd/kubelet/app/server.go` (`KubeClient`, `EventClient`,
//! `HeartbeatClient`), v1.36.

use std::time::Duration;

use component_base::client::{ClientConfig, ClientError};
use component_base::shutdown::Shutdown;

use super::AppError;
use crate::certificate;
use crate::configuration::KubeletConfiguration;
use crate::options::Options;

/// Pause between two tries to get a first certificate.
const BOOTSTRAP_RETRY: Duration = Duration::from_secs(5);

/// Each has connections and a rate limit of its own.
#[derive(Clone)]
pub(super) struct ApiClients {
    /// Pods, their objects, certificates, the node's registration.
    pub(super) main: kube::Client,
    /// The Lease and the node's status: no limit, and no longer wait than the next beat.
    pub(super) heartbeat: kube::Client,
    /// `eventRecordQPS` and `eventBurst`.
    pub(super) events: kube::Client,
    /// TokenReviews and SubjectAccessReviews, which strangers cause.
    ///
    /// DIFFERS: upstream's share the main client's limit.
    pub(super) reviews: kube::Client,
}

impl ApiClients {
    /// All of them, of one kubeconfig.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read or used.
    pub(super) async fn build(
        base: &ClientConfig,
        config: &KubeletConfiguration,
    ) -> Result<Self, ClientError> {
        let credentials = base.load().await?;
        let client = |budget: ClientConfig| budget.build_from(credentials.clone());
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        // The configuration holds whole numbers that fit.
        let main = ClientConfig {
            qps: config.kube_api_qps as f32,
            burst: number(config.kube_api_burst),
            ..base.clone()
        };
        let beat = config.node_status_update_frequency.0;
        let lease = Duration::from_secs(number(config.node_lease_duration_seconds).into());
        Ok(Self {
            heartbeat: client(ClientConfig {
                qps: 0.0,
                timeout: Some(beat.min(lease)),
                ..base.clone()
            })?,
            events: client(ClientConfig {
                qps: config.event_record_qps as f32,
                burst: number(config.event_burst),
                ..base.clone()
            })?,
            reviews: client(main.clone())?,
            main: client(main)?,
        })
    }
}

/// The clients, once there is a certificate. `None`: no kubeconfig, the kubelet runs alone, or it is to end.
pub(super) async fn api_clients(
    options: &Options,
    config: &KubeletConfiguration,
    shutdown: &Shutdown,
) -> Result<Option<ApiClients>, AppError> {
    let Some(kubeconfig) = &options.kubeconfig else {
        tracing::warn!("standalone mode, no API client");
        return Ok(None);
    };
    if let Some(bootstrap) = options.bootstrap_kubeconfig.as_ref() {
        loop {
            let load = certificate::load_client_cert(
                kubeconfig,
                bootstrap,
                &options.cert_dir,
                &options.node_name,
            );
            match shutdown.run_until(load).await {
                None => return Ok(None),
                Some(Ok(())) => break,
                Some(Err(error)) => {
                    tracing::error!(%error, "cannot get a client certificate, will retry")
                }
            }
            if shutdown
                .run_until(tokio::time::sleep(BOOTSTRAP_RETRY))
                .await
                .is_none()
            {
                return Ok(None);
            }
        }
    }
    if config.rotate_certificates {
        match certificate::keep_inline_pair(kubeconfig, &options.cert_dir) {
            Ok(true) => tracing::info!("kept the client certificate of the kubeconfig"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot keep the client certificate of the kubeconfig")
            }
        }
    }
    let mut base = ClientConfig::new("kubelet");
    base.kubeconfig = Some(kubeconfig.clone());
    Ok(Some(ApiClients::build(&base, config).await?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use axum::http::Uri;
    use k8s_openapi::api::authentication::v1::TokenReview;
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::{ConfigMap, Event};
    use kube::Api;
    use kube::api::PostParams;

    use super::*;

    /// An API server that repeats what it is told, and counts.
    async fn server(seen: Arc<AtomicUsize>) -> String {
        let router = axum::Router::new().fallback(async move |uri: Uri, body: String| {
            seen.fetch_add(1, Ordering::SeqCst);
            match body.is_empty() {
                true => format!(r#"{{"metadata":{{"name":"{}"}}}}"#, uri.path().len()),
                false => body,
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn heartbeats_pass_whoever_floods_the_other_clients() {
        let seen = Arc::new(AtomicUsize::new(0));
        let mut base = ClientConfig::new("kubelet");
        base.master = Some(server(seen.clone()).await);
        let config = KubeletConfiguration {
            kube_api_qps: 1,
            kube_api_burst: 1,
            event_record_qps: 1,
            event_burst: 1,
            ..KubeletConfiguration::default()
        };
        let clients = ApiClients::build(&base, &config).await.unwrap();
        let flood = |count: usize| {
            let (clients, mut tasks) = (clients.clone(), tokio::task::JoinSet::new());
            for _ in 0..count {
                let clients = clients.clone();
                tasks.spawn(async move {
                    let reviews: Api<TokenReview> = Api::all(clients.reviews.clone());
                    let objects: Api<ConfigMap> = Api::default_namespaced(clients.main.clone());
                    let events: Api<Event> = Api::default_namespaced(clients.events.clone());
                    let (review, event) = (TokenReview::default(), Event::default());
                    let write = PostParams::default();
                    let _ = tokio::join!(
                        reviews.create(&write, &review),
                        objects.get("a"),
                        events.create(&write, &event),
                    );
                });
            }
            tasks
        };
        let mut flooding = flood(500);
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Each of the three let its one through.
        assert!(seen.load(Ordering::SeqCst) <= 3);
        let leases: Api<Lease> = Api::namespaced(clients.heartbeat.clone(), "kube-node-lease");
        let begin = Instant::now();
        for _ in 0..20 {
            let lease = Lease::default();
            leases.create(&PostParams::default(), &lease).await.unwrap();
        }
        assert!(
            begin.elapsed() < Duration::from_millis(900),
            "{:?}",
            begin.elapsed()
        );
        // Who hung up owes nothing: a review is sent with the next token.
        flooding.shutdown().await;
        let reviews: Api<TokenReview> = Api::all(clients.reviews.clone());
        let begin = Instant::now();
        let review = TokenReview::default();
        reviews
            .create(&PostParams::default(), &review)
            .await
            .unwrap();
        assert!(
            begin.elapsed() < Duration::from_secs(3),
            "{:?}",
            begin.elapsed()
        );
    }
}

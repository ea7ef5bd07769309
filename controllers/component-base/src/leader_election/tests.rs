//! A leader, its lease in memory, and an API server that can be away.

use super::*;

#[test]
fn times_must_fit() {
    let good = LeaderElectionConfig::new("x");
    assert_eq!(good.validate(), Ok(()));
    let short = LeaderElectionConfig {
        lease_duration: Duration::from_secs(10),
        ..good.clone()
    };
    assert_eq!(short.validate(), Err(LeaderElectionError::LeaseDuration));
    let slow = LeaderElectionConfig {
        retry_period: Duration::from_secs(9),
        ..good
    };
    assert_eq!(slow.validate(), Err(LeaderElectionError::RenewDeadline));
}

/// A lease in memory behind an API server that can be away.
#[derive(Clone, Default)]
struct Server(Arc<std::sync::Mutex<(bool, Option<serde_json::Value>, u64)>>);

impl Server {
    fn set_away(&self, away: bool) {
        self.0.lock().expect("no panic").0 = away;
    }
    fn take_over(&self) {
        let mut state = self.0.lock().expect("no panic");
        let lease = state.1.as_mut().expect("there is a lease");
        lease["spec"]["holderIdentity"] = "another".into();
        lease["spec"]["leaseDurationSeconds"] = 3600.into();
        lease["metadata"]["resourceVersion"] = "taken".into();
    }
    fn answer(&self, request: &http::request::Parts, body: &[u8]) -> (u16, serde_json::Value) {
        let mut state = self.0.lock().expect("no panic");
        let failure = |code: u16, reason: &str| {
            let body = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason});
            (code, body)
        };
        if state.0 {
            return failure(503, "ServiceUnavailable");
        }
        // An event, which nobody reads.
        if !request.uri.path().contains("/leases") {
            return (201, serde_json::json!({}));
        }
        match (request.method.as_str(), state.1.clone()) {
            ("GET", Some(lease)) => (200, lease),
            ("GET", None) => failure(404, "NotFound"),
            (_, stored) => {
                let mut lease: serde_json::Value = serde_json::from_slice(body).expect("a lease");
                let version = &lease["metadata"]["resourceVersion"];
                if stored.is_some_and(|s| s["metadata"]["resourceVersion"] != *version) {
                    return failure(409, "Conflict");
                }
                state.2 += 1;
                lease["metadata"]["resourceVersion"] = state.2.to_string().into();
                state.1 = Some(lease.clone());
                (200, lease)
            }
        }
    }
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let (code, answer) = server.answer(&parts, &body);
                let answer = http::Response::builder()
                    .status(code)
                    .header("content-type", "application/json")
                    .body(kube::client::Body::from(answer.to_string().into_bytes()))?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
            }
        });
        Client::new(service, "default")
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

/// A candidate with short times.
fn candidate(server: &Server, shutdown: &Shutdown) -> LeaderElector {
    let config = LeaderElectionConfig {
        lease_duration: Duration::from_millis(1500),
        renew_deadline: Duration::from_millis(200),
        retry_period: Duration::from_millis(20),
        ..LeaderElectionConfig::new("x")
    };
    let recorder = Recorder::core_v1(server.client(), "x", "", shutdown);
    LeaderElector::new(server.client(), config, recorder).expect("valid")
}

/// A leader with short times, the handle to its leadership, its shutdown and its end.
fn leader(
    server: &Server,
) -> (
    Leadership,
    Shutdown,
    tokio::task::JoinHandle<Outcome>,
    tokio::sync::oneshot::Receiver<()>,
) {
    let shutdown = Shutdown::new();
    let elector = candidate(server, &shutdown);
    let leadership = elector.leadership();
    let (sender, started) = tokio::sync::oneshot::channel();
    let (token, handle) = (shutdown.clone(), leadership.clone());
    let end = tokio::spawn(async move {
        let work = |leading: Shutdown| async move {
            let _ = sender.send(());
            leading.triggered().await;
            // A write that waits for the pause to end must not hold the end of the process up.
            handle.wait().await;
        };
        elector.run(&token, work).await
    });
    (leadership, shutdown, end, started)
}

#[tokio::test]
async fn a_leader_cut_off_pauses_and_leads_on() {
    let server = Server::default();
    let (leadership, shutdown, end, started) = leader(&server);
    assert!(!leadership.wait().await, "nobody leads before the election");
    started.await.expect("it leads");
    assert!(leadership.wait().await);
    server.set_away(true);
    eventually("it pauses", || *leadership.state.borrow() == State::Paused).await;
    assert!(!leadership.is_leading());
    let waiting = tokio::spawn({
        let leadership = leadership.clone();
        async move { leadership.wait().await }
    });
    server.set_away(false);
    assert!(waiting.await.expect("no panic"), "the write goes out");
    assert!(!end.is_finished());
    shutdown.trigger();
    assert_eq!(end.await.expect("no panic"), Outcome::Shutdown);
}

#[tokio::test]
async fn a_paused_leader_ends_when_told_and_when_another_leads() {
    let server = Server::default();
    let (leadership, shutdown, end, started) = leader(&server);
    started.await.expect("it leads");
    server.set_away(true);
    eventually("it pauses", || *leadership.state.borrow() == State::Paused).await;
    shutdown.trigger();
    assert_eq!(end.await.expect("no panic"), Outcome::Shutdown);

    let server = Server::default();
    let (leadership, _shutdown, end, started) = leader(&server);
    started.await.expect("it leads");
    server.set_away(true);
    eventually("it pauses", || *leadership.state.borrow() == State::Paused).await;
    server.take_over();
    server.set_away(false);
    assert_eq!(end.await.expect("no panic"), Outcome::Lost);
    assert!(!leadership.wait().await);
}

#[tokio::test]
async fn work_that_fails_and_a_lease_that_is_lost_are_told_apart() {
    #[derive(Debug, PartialEq)]
    enum Ended {
        Lost,
        Failed,
    }
    impl From<LeaseLost> for Ended {
        fn from(_: LeaseLost) -> Self {
            Self::Lost
        }
    }
    let shutdown = Shutdown::new();
    let failing = candidate(&Server::default(), &shutdown)
        .run_work(&shutdown, |_| async { Err(Ended::Failed) });
    assert_eq!(failing.await, Err(Ended::Failed));

    let server = Server::default();
    let taken = server.clone();
    let losing = candidate(&server, &shutdown).run_work(&shutdown, |leading| async move {
        taken.take_over();
        leading.triggered().await;
        Ok(())
    });
    assert_eq!(losing.await, Err(Ended::Lost));

    // Told to end before it ever led.
    shutdown.trigger();
    let server = Server::default();
    server.set_away(true);
    let never = candidate(&server, &shutdown);
    assert_eq!(
        never
            .run_work(&shutdown, |_| async { Err(Ended::Failed) })
            .await,
        Ok(())
    );
}

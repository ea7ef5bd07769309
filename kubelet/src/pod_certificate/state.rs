//! Where one source stands, and what comes next. Pure.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use volumes::{CertificateStateError, PodCertificate};

/// A request that nobody has seen for so long (and some jitter) was deleted. Upstream: `assumeDeletedThreshold`.
const ASSUME_DELETED: SignedDuration = SignedDuration::from_mins(10);
/// A certificate is overdue so long after it should have been renewed. Upstream: `refreshOverdueDuration`.
const REFRESH_OVERDUE: SignedDuration = SignedDuration::from_mins(10);

/// What was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issued {
    certificate: PodCertificate,
    begin_refresh_at: Timestamp,
    not_after: Timestamp,
    told_overdue: bool,
    told_expired: bool,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    key: Arc<[u8]>,
    /// The request's.
    name: String,
    abandon_at: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Initial,
    Wait(Asked),
    /// For good.
    Refused(CertificateStateError),
    Fresh(Issued),
    Renew(Issued, Asked),
}

/// What the pod is told, or its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Issued,
    /// The request's name, what became of it.
    Refused(String, CertificateStateError),
    Overdue,
    Expired,
}

/// What came of a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// A new key is wanted, and a request for it.
    pub ask: bool,
    pub news: Vec<News>,
}

impl State {
    /// Looks at the request, if there is one (`find` by its name), and at the clock. `jitter` keeps pods apart.
    pub fn step(
        &mut self,
        find: impl Fn(&str) -> Option<Arc<PodCertificateRequest>>,
        now: Timestamp,
        jitter: SignedDuration,
    ) -> Step {
        let mut step = Step::default();
        *self = match std::mem::take(self) {
            State::Initial => {
                step.ask = true;
                State::Initial
            }
            State::Refused(error) => State::Refused(error),
            State::Wait(asked) => match find(&asked.name) {
                Some(request) => {
                    answer(&asked, &request, jitter, &mut step).unwrap_or(State::Wait(asked))
                }
                None if now > asked.abandon_at => {
                    step.ask = true;
                    State::Initial
                }
                None => State::Wait(asked),
            },
            State::Fresh(mut issued) => {
                if now >= issued.begin_refresh_at {
                    step.ask = true;
                    issued.tell(now, &mut step);
                }
                State::Fresh(issued)
            }
            State::Renew(mut issued, asked) => match find(&asked.name) {
                Some(request) => answer(&asked, &request, jitter, &mut step).unwrap_or_else(|| {
                    issued.tell(now, &mut step);
                    State::Renew(issued, asked)
                }),
                None if now > asked.abandon_at => {
                    step.ask = true;
                    State::Fresh(issued)
                }
                None => State::Renew(issued, asked),
            },
        };
        step
    }

    /// A request was made.
    pub fn asked(&mut self, key: Arc<[u8]>, name: String, at: Timestamp, jitter: SignedDuration) {
        let asked = Asked {
            key,
            name,
            abandon_at: at
                .saturating_add(ASSUME_DELETED + jitter)
                .unwrap_or(Timestamp::MAX),
        };
        *self = match std::mem::take(self) {
            State::Fresh(issued) | State::Renew(issued, _) => State::Renew(issued, asked),
            _ => State::Wait(asked),
        };
    }

    /// # Errors
    /// Why there is none.
    pub fn certificate(&self) -> Result<PodCertificate, CertificateStateError> {
        match self {
            State::Fresh(issued) | State::Renew(issued, _) => Ok(issued.certificate.clone()),
            State::Refused(error) => Err(error.clone()),
            State::Initial | State::Wait(_) => Err(CertificateStateError::NotIssued),
        }
    }

    /// The label of the metric.
    pub fn label(&self, now: Timestamp) -> &'static str {
        match self {
            State::Initial | State::Wait(_) => "not_yet_issued",
            State::Refused(CertificateStateError::Denied { .. }) => "denied",
            State::Refused(_) => "failed",
            State::Fresh(issued) | State::Renew(issued, _) => {
                if now > issued.not_after {
                    "expired"
                } else if issued.is_overdue(now) {
                    "overdue_for_refresh"
                } else {
                    "fresh"
                }
            }
        }
    }
}

impl Issued {
    fn is_overdue(&self, now: Timestamp) -> bool {
        now.duration_since(self.begin_refresh_at) > REFRESH_OVERDUE
    }

    /// Says once each that a renewal is late and that it is too late.
    fn tell(&mut self, now: Timestamp, step: &mut Step) {
        if self.is_overdue(now) && !std::mem::replace(&mut self.told_overdue, true) {
            step.news.push(News::Overdue);
        }
        if now > self.not_after && !std::mem::replace(&mut self.told_expired, true) {
            step.news.push(News::Expired);
        }
    }
}

/// The state that the request's conditions lead to; `None` while it is open.
fn answer(
    asked: &Asked,
    request: &PodCertificateRequest,
    jitter: SignedDuration,
    step: &mut Step,
) -> Option<State> {
    let status = request.status.as_ref()?;
    let refused = |step: &mut Step, error: CertificateStateError| {
        step.news
            .push(News::Refused(asked.name.clone(), error.clone()));
        State::Refused(error)
    };
    status.conditions.iter().flatten().find_map(|condition| {
        let (reason, message) = (condition.reason.clone(), condition.message.clone());
        match condition.type_.as_str() {
            "Denied" => Some(refused(
                step,
                CertificateStateError::Denied { reason, message },
            )),
            "Failed" => Some(refused(
                step,
                CertificateStateError::Failed { reason, message },
            )),
            "Issued" => {
                step.news.push(News::Issued);
                let not_after = status.not_after.as_ref().map_or(Timestamp::MAX, |t| t.0);
                let begin = status.begin_refresh_at.as_ref().map_or(not_after, |t| t.0);
                Some(State::Fresh(Issued {
                    certificate: PodCertificate {
                        key: asked.key.clone(),
                        chain: clean(status.certificate_chain.as_deref().unwrap_or_default())
                            .into(),
                    },
                    begin_refresh_at: begin.saturating_add(jitter).unwrap_or(not_after),
                    not_after,
                    told_overdue: false,
                    told_expired: false,
                }))
            }
            _ => None,
        }
    })
}

/// The certificates without what stands between them.
fn clean(chain: &str) -> Vec<u8> {
    let Ok(blocks) = pem::parse_many(chain) else {
        // The API server has read it before; what it takes is shown as it is.
        return chain.as_bytes().to_vec();
    };
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let texts = blocks
        .into_iter()
        .map(|b| pem::encode_config(&pem::Pem::new("CERTIFICATE", b.into_contents()), config));
    texts.collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CHAIN: &str = "-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n";
    const JITTER: SignedDuration = SignedDuration::from_secs(60);

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    fn request(condition: Option<&str>) -> Arc<PodCertificateRequest> {
        let conditions: Vec<Value> = condition
            .iter()
            .map(|c| json!({"type": c, "status": "True", "reason": "R", "message": "m", "lastTransitionTime": at(0).to_string()}))
            .collect();
        let object = json!({
            "metadata": {"name": "req"},
            "spec": {"nodeName": "n", "nodeUID": "nu", "podName": "p", "podUID": "pu", "serviceAccountName": "sa",
                "serviceAccountUID": "su", "signerName": "s", "stubPKCS10Request": ""},
            "status": {"conditions": conditions, "certificateChain": format!("noise\n{CHAIN}"),
                "beginRefreshAt": at(30).to_string(), "notAfter": at(60).to_string()},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn look(state: &mut State, request: Option<Arc<PodCertificateRequest>>, now: i64) -> Step {
        let find = |name: &str| {
            assert_eq!(name, "req");
            request.clone()
        };
        state.step(find, at(now), JITTER)
    }

    fn ask(state: &mut State, key: &str, now: i64) {
        state.asked(key.as_bytes().into(), "req".into(), at(now), JITTER);
    }

    fn step(ask: bool, news: &[News]) -> Step {
        Step {
            ask,
            news: news.to_vec(),
        }
    }

    #[test]
    fn issued_and_renewed() {
        let mut state = State::default();
        assert_eq!(look(&mut state, None, 0), step(true, &[]));
        ask(&mut state, "K1", 0);
        assert_eq!(look(&mut state, None, 1), step(false, &[]));
        assert_eq!(look(&mut state, Some(request(None)), 2), step(false, &[]));
        assert_eq!(state.certificate(), Err(CertificateStateError::NotIssued));
        assert_eq!(state.label(at(2)), "not_yet_issued");
        let issued = Some(request(Some("Issued")));
        assert_eq!(
            look(&mut state, issued.clone(), 3),
            step(false, &[News::Issued])
        );
        let certificate = state.certificate().unwrap();
        assert_eq!(
            (&*certificate.key, &*certificate.chain),
            (&b"K1"[..], CHAIN.as_bytes())
        );
        assert_eq!(look(&mut state, None, 30), step(false, &[]));
        // The renewal begins a minute of jitter after it may.
        assert_eq!(look(&mut state, None, 31), step(true, &[]));
        ask(&mut state, "K2", 31);
        assert_eq!(&*state.certificate().unwrap().key, b"K1");
        assert_eq!(look(&mut state, issued, 32), step(false, &[News::Issued]));
        assert_eq!(&*state.certificate().unwrap().key, b"K2");
        assert_eq!(state.label(at(32)), "fresh");
    }

    #[test]
    fn refusals_are_for_good() {
        for (condition, label) in [("Denied", "denied"), ("Failed", "failed")] {
            for renewal in [false, true] {
                let mut state = State::default();
                ask(&mut state, "K1", 0);
                if renewal {
                    look(&mut state, Some(request(Some("Issued"))), 1);
                    ask(&mut state, "K2", 31);
                }
                let got = look(&mut state, Some(request(Some(condition))), 32);
                let error = state.certificate().unwrap_err();
                let news = News::Refused("req".into(), error.clone());
                assert_eq!(got, step(false, &[news]), "{condition}");
                let text = format!(
                    "PodCertificateRequest was permanently {label}: reason=\"R\" message=\"m\""
                );
                assert_eq!(error.to_string(), text);
                assert_eq!(state.label(at(99)), label);
                assert_eq!(look(&mut state, None, 99), step(false, &[]));
            }
        }
    }

    #[test]
    fn a_request_that_is_gone_is_made_again() {
        let mut state = State::default();
        ask(&mut state, "K1", 0);
        assert_eq!(look(&mut state, None, 11), step(false, &[]));
        assert_eq!(look(&mut state, None, 12), step(true, &[]));
        assert_eq!(state, State::Initial);
        ask(&mut state, "K1", 12);
        look(&mut state, Some(request(Some("Issued"))), 13);
        ask(&mut state, "K2", 31);
        assert_eq!(look(&mut state, None, 50), step(true, &[]));
        assert!(matches!(state, State::Fresh(_)));
    }

    #[test]
    fn late_renewals_are_told_once() {
        let mut state = State::default();
        ask(&mut state, "K1", 0);
        look(&mut state, Some(request(Some("Issued"))), 1);
        assert_eq!(look(&mut state, None, 42), step(true, &[News::Overdue]));
        assert_eq!(state.label(at(42)), "overdue_for_refresh");
        assert_eq!(look(&mut state, None, 43), step(true, &[]));
        ask(&mut state, "K2", 43);
        let open = Some(request(None));
        assert_eq!(look(&mut state, open.clone(), 44), step(false, &[]));
        let told = look(&mut state, open.clone(), 61);
        assert_eq!(told, step(false, &[News::Expired]));
        assert_eq!(state.label(at(61)), "expired");
        assert_eq!(look(&mut state, open, 62), step(false, &[]));
    }
}

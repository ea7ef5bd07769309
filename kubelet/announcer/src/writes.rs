//! Writes of leases, beside the loop: it never waits for the API server.
//!
//! One write a Lease at a time; one that failed is not tried again before a pause.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::sync::mpsc;

use crate::lease::{Of, Outcome, Writer};
use crate::metrics::METRICS;

/// After a write that failed.
const RETRY: Duration = Duration::from_millis(500);
/// Addresses written at the same time.
const AT_ONCE: usize = 16;

/// What came of writes.
#[derive(Debug)]
pub enum Written {
    /// A Lease is this now.
    Is(Box<Lease>),
    /// The Lease as it was known is not there.
    Gone(Box<Lease>),
    /// The write of an address is over. Whether it may be tried again at once.
    Done(IpAddr, bool),
    /// This node's Lease was renewed, by a request that was sent then.
    Renewed(Duration),
    /// It was not.
    NotRenewed,
    /// All leases, read anew; `None`: they could not be read.
    Listed(Option<Vec<Lease>>),
}

/// One address to write.
#[derive(Clone, Debug)]
pub struct Write {
    /// The address.
    pub address: IpAddr,
    /// Its Lease as it is known.
    pub known: Option<Lease>,
    /// What it becomes.
    pub change: Change,
}

/// What a Lease becomes.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// This node's; with a node that is thought to be gone, and its Lease as it is known.
    Take(Option<(String, Option<Lease>)>),
    /// Nobody's.
    GiveBack,
    /// It goes.
    Delete,
}

/// Begins writes, and remembers what is under way.
pub struct Writes {
    writer: Writer,
    clock: Clock,
    shutdown: Shutdown,
    sender: mpsc::UnboundedSender<Written>,
    /// Addresses under way (`None`) or to be left alone until then.
    busy: BTreeMap<IpAddr, Option<Duration>>,
    /// A renewal is under way.
    pub renewing: bool,
    /// A list is under way.
    pub listing: bool,
    /// This node's Node, which its Lease goes with.
    pub owner: Option<OwnerReference>,
}

/// The time by which renewals are told: when the request was sent.
async fn renew(
    writer: &Writer,
    owner: Option<&OwnerReference>,
    clock: &Clock,
    sender: &mpsc::UnboundedSender<Written>,
) -> bool {
    let sent = clock.monotonic();
    match writer.renew(owner).await {
        Ok(lease) => {
            METRICS.renewals.with_label_values(&["success"]).inc();
            // The loop that receives has ended: so does everything.
            let _ = sender.send(Written::Is(Box::new(lease)));
            let _ = sender.send(Written::Renewed(sent));
            true
        }
        Err(error) => {
            METRICS.renewals.with_label_values(&["error"]).inc();
            tracing::debug!(%error, "Cannot renew this node's Lease");
            let _ = sender.send(Written::NotRenewed);
            false
        }
    }
}

impl Writes {
    /// Nothing is under way.
    pub fn new(
        writer: Writer,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Self, mpsc::UnboundedReceiver<Written>) {
        // Bounded by what is under way: a write an address, a renewal, a list.
        let (sender, receiver) = mpsc::unbounded_channel();
        let writes = Self {
            writer,
            clock,
            shutdown: shutdown.clone(),
            sender,
            busy: BTreeMap::new(),
            renewing: false,
            listing: false,
            owner: None,
        };
        (writes, receiver)
    }

    /// Whether the Lease of an address may be written now.
    pub fn is_free(&self, address: IpAddr) -> bool {
        !self.busy.contains_key(&address)
    }

    /// What failed long enough ago may be tried again; whether there is such.
    pub fn forget(&mut self, now: Duration) -> bool {
        let before = self.busy.len();
        self.busy
            .retain(|_, until| until.is_none_or(|until| now < until));
        self.busy.len() < before
    }

    /// When a write that failed may be tried again.
    pub fn wake(&self) -> Option<Duration> {
        self.busy.values().flatten().min().copied()
    }

    /// A write is over.
    pub fn done(&mut self, address: IpAddr, again: bool, now: Duration) {
        match again {
            true => drop(self.busy.remove(&address)),
            false => drop(self.busy.insert(address, Some(now + RETRY))),
        }
    }

    /// Begins a renewal.
    pub fn renew(&mut self) {
        self.renewing = true;
        let (writer, clock, sender) = self.parts();
        let owner = self.owner.clone();
        self.shutdown.spawn_guarded("renewal", async move {
            renew(&writer, owner.as_ref(), &clock, &sender).await;
        });
    }

    /// Begins to read all leases.
    pub fn list(&mut self) {
        self.listing = true;
        let (writer, _, sender) = self.parts();
        self.shutdown.spawn_guarded("list of leases", async move {
            let listed = writer.list().await;
            if let Err(error) = &listed {
                tracing::warn!(%error, "Cannot read the leases");
            }
            let _ = sender.send(Written::Listed(listed.ok()));
        });
    }

    fn parts(&self) -> (Writer, Clock, mpsc::UnboundedSender<Written>) {
        (self.writer.clone(), self.clock.clone(), self.sender.clone())
    }

    /// Begins writes; each is told when it is over.
    pub fn begin(&mut self, writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        self.busy.extend(writes.iter().map(|w| (w.address, None)));
        let (writer, clock, sender) = self.parts();
        let owner = self.owner.clone();
        self.shutdown.spawn_guarded("writes of leases", async move {
            let gone = look_up_holders(&writer, &writes, &sender).await;
            let takes = |write: &Write| matches!(write.change, Change::Take(_));
            // Nobody may find this node gone as soon as it holds something.
            let renewed = match writes.iter().any(|w| takes(w) && is_due(w, &gone)) {
                true => renew(&writer, owner.as_ref(), &clock, &sender).await,
                false => true,
            };
            let all = writes.into_iter().map(|write| {
                let goes = !takes(&write) || (renewed && is_due(&write, &gone));
                let writer = writer.clone();
                async move {
                    let result = match goes {
                        true => Some(carry_out(&writer, &write).await),
                        false => None,
                    };
                    (write, result)
                }
            });
            let mut all = stream::iter(all).buffer_unordered(AT_ONCE);
            while let Some((write, result)) = all.next().await {
                tell(&write, result, &sender);
            }
        });
    }
}

/// Whether a holder that was thought to be gone is: others' addresses are left alone.
fn is_due(write: &Write, gone: &BTreeMap<String, bool>) -> bool {
    match &write.change {
        Change::Take(Some((holder, _))) => gone.get(holder).copied().unwrap_or(false),
        _ => true,
    }
}

/// Reads the leases of holders once more: what is known of them may be old, where a watch is behind.
async fn look_up_holders(
    writer: &Writer,
    writes: &[Write],
    sender: &mpsc::UnboundedSender<Written>,
) -> BTreeMap<String, bool> {
    let mut gone = BTreeMap::new();
    for write in writes {
        let Change::Take(Some((holder, known))) = &write.change else {
            continue;
        };
        if gone.contains_key(holder) {
            continue;
        }
        let is_gone = match writer.get(&Of::Node(holder.clone())).await {
            Ok(Outcome::Gone) => true,
            Ok(Outcome::Is(lease)) => {
                let renewed =
                    |lease: &Lease| lease.spec.as_ref().and_then(|s| s.renew_time.clone());
                let same = known
                    .as_ref()
                    .is_some_and(|known| renewed(known) == renewed(&lease));
                let _ = sender.send(Written::Is(lease));
                same
            }
            Err(error) => {
                tracing::warn!(%holder, %error, "Cannot read the holder's Lease");
                false
            }
        };
        gone.insert(holder.clone(), is_gone);
    }
    gone
}

async fn carry_out(writer: &Writer, write: &Write) -> Result<Outcome, kube::Error> {
    let known = write.known.clone();
    match (&write.change, known) {
        (Change::Take(_), known) => writer.set_holder(write.address, known, true).await,
        (Change::GiveBack, known) => writer.set_holder(write.address, known, false).await,
        (Change::Delete, Some(known)) => writer.delete(write.address, &known).await,
        (Change::Delete, None) => Ok(Outcome::Gone),
    }
}

fn tell(
    write: &Write,
    result: Option<Result<Outcome, kube::Error>>,
    sender: &mpsc::UnboundedSender<Written>,
) {
    let again = match result {
        None => false,
        Some(Ok(Outcome::Is(lease))) => {
            let _ = sender.send(Written::Is(lease));
            true
        }
        Some(Ok(Outcome::Gone)) => {
            if let Some(known) = &write.known {
                let _ = sender.send(Written::Gone(Box::new(known.clone())));
            }
            true
        }
        Some(Err(error)) => {
            let address = write.address;
            tracing::warn!(%address, %error, "Cannot write the Lease");
            false
        }
    };
    let _ = sender.send(Written::Done(write.address, again));
}

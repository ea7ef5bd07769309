//! [`Syncer`]: keeps one table of the kernel equal to a wanted one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::diff::rebuild;
use crate::transaction::Operation;
use crate::{Chain, Family, Nft, NftError, Table, diff};

/// How long an unused chain stays before it is deleted: see [`crate::Difference::stale_chains`]. Upstream: 1 s.
const STALE_CHAIN_AGE: Duration = Duration::from_secs(1);

/// What one sync did.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// Operations that were applied; 0: the kernel had all of it.
    pub operations: usize,
    /// Unused chains are left; a sync after this time deletes them.
    pub retry_after: Option<Duration>,
}

/// Keeps one table. The first sync adopts what the kernel has, so a restart changes nothing that is right.
pub struct Syncer {
    nft: Arc<dyn Nft>,
    family: Family,
    name: String,
    /// What the kernel has, as far as we know. `Unknown` before the first sync and after a failure.
    kernel: Kernel,
    stale_since: BTreeMap<String, Instant>,
}

enum Kernel {
    Unknown,
    Known(Option<Table>),
    /// A table of this name with something in it that we never make: it is made anew.
    Foreign,
}

impl Syncer {
    pub fn new(nft: Arc<dyn Nft>, family: Family, name: impl Into<String>) -> Self {
        Self {
            nft,
            family,
            name: name.into(),
            kernel: Kernel::Unknown,
            stale_since: BTreeMap::new(),
        }
    }

    /// Forgets what the kernel is believed to have; the next sync lists it again.
    pub fn forget(&mut self) {
        self.kernel = Kernel::Unknown;
    }

    /// The table as last known, for reading back (`None`: unknown or none there).
    pub fn known(&self) -> Option<&Table> {
        match &self.kernel {
            Kernel::Known(table) => table.as_ref(),
            Kernel::Unknown | Kernel::Foreign => None,
        }
    }

    /// Lists the kernel's table unless it is known.
    pub async fn adopt(&mut self) -> Result<Option<&Table>, NftError> {
        if let Kernel::Unknown = self.kernel {
            self.stale_since.clear();
            self.kernel = match self.nft.list(self.family, &self.name).await {
                Ok(table) => Kernel::Known(table),
                Err(NftError::Parse(reason)) => {
                    tracing::warn!(table = %self.name, family = %self.family, reason, "the table is none of ours; making it anew");
                    Kernel::Foreign
                }
                Err(error) => return Err(error),
            };
        }
        Ok(self.known())
    }

    /// Makes the kernel's table equal to `wanted`, in one transaction of only what differs.
    ///
    /// # Errors
    /// A refused transaction is tried once more against a fresh listing, since somebody else may have changed the table.
    pub async fn sync(&mut self, wanted: Table) -> Result<SyncReport, NftError> {
        debug_assert!(
            wanted.dangling().is_empty(),
            "dangling names: {:?}",
            wanted.dangling()
        );
        let fresh = matches!(self.kernel, Kernel::Unknown);
        match self.attempt(&wanted).await {
            Err(NftError::Refused { stderr, .. }) if !fresh => {
                tracing::warn!(table = %self.name, family = %self.family, %stderr, "transaction refused; listing the table again");
                self.attempt(&wanted).await
            }
            other => other,
        }
        .map(|(operations, stale)| {
            self.stale_since.retain(|chain, _| stale.contains(chain));
            let now = Instant::now();
            let mut table = wanted;
            for chain in stale {
                table.chains.insert(chain.clone(), Chain::default());
                self.stale_since.entry(chain).or_insert(now);
            }
            self.kernel = Kernel::Known(Some(table));
            let retry_after = (!self.stale_since.is_empty()).then_some(STALE_CHAIN_AGE);
            SyncReport { operations, retry_after }
        })
    }

    async fn attempt(&mut self, wanted: &Table) -> Result<(usize, Vec<String>), NftError> {
        self.adopt().await?;
        let mut difference = match &self.kernel {
            Kernel::Foreign => rebuild(true, wanted),
            _ => diff(self.known(), wanted),
        };
        let now = Instant::now();
        let due = |chain: &String| {
            self.stale_since
                .get(chain)
                .is_some_and(|since| now.duration_since(*since) >= STALE_CHAIN_AGE)
        };
        let (delete, keep): (Vec<_>, Vec<_>) = difference.stale_chains.drain(..).partition(due);
        let operations = &mut difference.transaction.operations;
        operations.extend(
            delete
                .into_iter()
                .map(|chain| Operation::DeleteChain { chain }),
        );
        let count = operations.len();
        if let Err(error) = self.nft.apply(&difference.transaction).await {
            self.forget();
            return Err(error);
        }
        Ok((count, keep))
    }

    /// Deletes the table.
    pub async fn delete(&mut self) -> Result<(), NftError> {
        let transaction = crate::Transaction::delete_table(self.family, self.name.clone());
        self.forget();
        self.nft.apply(&transaction).await
    }
}

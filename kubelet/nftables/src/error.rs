//! Why a call of nft failed.

use std::time::Duration;

/// A failed call; nothing of a refused transaction was applied.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot run {program}: {source}")]
    Spawn {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// nft refused the transaction. `transaction` is its beginning.
    #[error("nft refused the transaction: {stderr}")]
    Refused { stderr: String, transaction: String },
    #[error("nft did not answer within {after:?}")]
    Timeout { after: Duration },
    #[error("cannot understand nft's listing: {0}")]
    Parse(String),
}

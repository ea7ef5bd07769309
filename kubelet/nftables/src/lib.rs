//! nftables: objects, transactions and the difference between two states of a table.

/// Why a call of nft failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot run {program}: {source}")]
    Spawn {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// nft refused the transaction; nothing of it was applied.
    #[error("nft: {stderr}")]
    Refused { stderr: String },
    #[error("nft: cannot understand its listing: {0}")]
    Parse(String),
}

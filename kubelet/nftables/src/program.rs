//! The way to the kernel: trait [`Nft`], and the `nft` program behind it.
//!
//! The text form is used for transactions (the JSON form costs nft about twice the CPU) and JSON for listings.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::value::Family;
use crate::{NftError, Outline, Table, Transaction, listing, outline};

/// Applies transactions and lists tables.
#[async_trait]
pub trait Nft: Send + Sync {
    /// Applies all of the transaction or nothing.
    ///
    /// # Errors
    /// [`NftError::Refused`] when it does not fit what the kernel has: list, compute anew, retry.
    async fn apply(&self, transaction: &Transaction) -> Result<(), NftError>;

    /// The table as the kernel has it; `None` when there is none.
    async fn list(&self, family: Family, table: &str) -> Result<Option<Table>, NftError>;

    /// What a table of somebody else's has; `None` when there is no such table.
    async fn outline(&self, family: Family, table: &str) -> Result<Option<Outline>, NftError>;
}

/// Bound on one run of nft. 100,000 elements take about 2 s; a stalled machine may take longer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The `nft` program, in the network namespace of this process or in a named one.
#[derive(Clone, Debug)]
pub struct NftProgram {
    program: PathBuf,
    prefix: Vec<String>,
}

impl Default for NftProgram {
    fn default() -> Self {
        Self {
            program: "nft".into(),
            prefix: Vec::new(),
        }
    }
}

impl NftProgram {
    /// `nft` as found in PATH.
    pub fn new() -> Self {
        Self::default()
    }

    /// `nft` inside the network namespace at this path (entered by `nsenter`).
    pub fn in_namespace(path: impl Into<PathBuf>) -> Self {
        let path: PathBuf = path.into();
        Self {
            program: "nsenter".into(),
            prefix: vec![format!("--net={}", path.display()), "nft".into()],
        }
    }

    async fn run(&self, arguments: &[&str], input: Option<String>) -> Result<Output, NftError> {
        let spawn_error = |source| NftError::Spawn {
            program: self.program.display().to_string(),
            source,
        };
        let mut child = Command::new(&self.program)
            .args(&self.prefix)
            .args(arguments)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn_error)?;
        let stdin = child.stdin.take();
        let feed = async move {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // nft may end before it has read everything; its own message says why.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let both = async { tokio::join!(feed, child.wait_with_output()).1 };
        match tokio::time::timeout(TIMEOUT, both).await {
            Ok(output) => output.map_err(spawn_error),
            Err(_) => Err(NftError::Timeout { after: TIMEOUT }),
        }
    }
}

impl NftProgram {
    /// The listing of a table; `None` when there is none.
    async fn json(&self, family: Family, table: &str) -> Result<Option<String>, NftError> {
        let tables = self.run(&["-j", "list", "tables"], None).await?;
        if !tables.status.success() {
            return Err(refused(&tables, "list tables"));
        }
        let names = listing::table_names(family, &String::from_utf8_lossy(&tables.stdout))?;
        if !names.iter().any(|name| name == table) {
            return Ok(None);
        }
        let listed = self
            .run(&["-j", "list", "table", family.as_str(), table], None)
            .await?;
        if !listed.status.success() {
            return Err(refused(&listed, "list table"));
        }
        Ok(Some(String::from_utf8_lossy(&listed.stdout).into_owned()))
    }
}

fn refused(output: &Output, transaction: &str) -> NftError {
    // nft points at the place with a copy of the whole line: keep the messages alone.
    let stderr = String::from_utf8_lossy(&output.stderr);
    let messages: Vec<_> = stderr
        .lines()
        .filter(|line| line.contains("rror"))
        .take(5)
        .collect();
    let stderr = if messages.is_empty() {
        stderr.chars().take(500).collect()
    } else {
        messages.join("; ")
    };
    let transaction = transaction.chars().take(2000).collect();
    NftError::Refused {
        stderr,
        transaction,
    }
}

#[async_trait]
impl Nft for NftProgram {
    async fn apply(&self, transaction: &Transaction) -> Result<(), NftError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let text = transaction.text();
        tracing::trace!(transaction = %text, "running nft");
        let output = self.run(&["-f", "-"], Some(text.clone())).await?;
        if output.status.success() {
            Ok(())
        } else {
            Err(refused(&output, &text))
        }
    }

    async fn list(&self, family: Family, table: &str) -> Result<Option<Table>, NftError> {
        let listed = self.json(family, table).await?;
        let read = |json: String| listing::table(family, table, &json);
        listed.map(read).transpose()
    }

    async fn outline(&self, family: Family, table: &str) -> Result<Option<Outline>, NftError> {
        let listed = self.json(family, table).await?;
        listed.map(|json| outline::read(&json)).transpose()
    }
}

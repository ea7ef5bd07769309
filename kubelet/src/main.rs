//! The kubelet's program; everything is in the library.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    kubelet::app::run().await?;
    Ok(())
}

//! The kubelet's program; everything is in the library.

fn main() -> anyhow::Result<()> {
    kubelet::memory::set_up();
    run()
}

#[tokio::main]
async fn run() -> anyhow::Result<()> {
    kubelet::app::run().await?;
    Ok(())
}

//! The CRI's server; everything is in the library.

use component_base::shutdown::Shutdown;
use cri::options::{Options, flag_set};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let flags = flag_set().parse_or_exit();
    flags.init_logs()?;
    let shutdown = Shutdown::on_signals()?;
    cri::front::run(Options::from_flags(&flags)?, shutdown.token()).await?;
    Ok(())
}

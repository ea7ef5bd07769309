//! The life of a process that a command line starts: flags, logs, the runtime, signals, its work, the exit code.
//!
//! Never knows what the work is. Upstream: `k8s.io/component-base/cli/run.go`.

use std::fmt::Display;
use std::time::Duration;

use crate::flags::{FlagSet, Flags};
use crate::shutdown::Shutdown;
use crate::tasks::TaskError;

/// Tasks that hang in a request must not keep the process.
const LATE_TASKS: Duration = Duration::from_secs(1);

/// Reads the command line, then does `work` until that ends or a signal ends it. The exit code: 0, or 1 with the error on standard error,
/// causes included.
///
/// Wrong flags, `--help` and `--version` end the process here.
pub fn run<Work, E>(flags: &FlagSet, work: impl FnOnce(Flags, Shutdown) -> Work) -> i32
where
    Work: Future<Output = Result<(), E>>,
    E: Display + From<TaskError>,
{
    run_on_threads(None, flags, work)
}

/// The same, with so many threads that carry tasks (at least one), not as many as there are processors.
pub fn run_on<Work, E>(
    threads: usize,
    flags: &FlagSet,
    work: impl FnOnce(Flags, Shutdown) -> Work,
) -> i32
where
    Work: Future<Output = Result<(), E>>,
    E: Display + From<TaskError>,
{
    run_on_threads(Some(threads.max(1)), flags, work)
}

/// `None`: as many as there are processors.
fn run_on_threads<Work, E>(
    threads: Option<usize>,
    flags: &FlagSet,
    work: impl FnOnce(Flags, Shutdown) -> Work,
) -> i32
where
    Work: Future<Output = Result<(), E>>,
    E: Display + From<TaskError>,
{
    let flags = flags.parse_or_exit();
    if let Err(error) = flags.init_logs() {
        return failed(error);
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(format_args!("starting the runtime: {error}")),
    };
    let code = runtime.block_on(async {
        let shutdown = match Shutdown::on_signals() {
            Ok(shutdown) => shutdown,
            Err(error) => return failed(format_args!("installing signal handlers: {error}")),
        };
        match shutdown.supervise(work(flags, shutdown.clone())).await {
            Ok(()) => 0,
            Err(error) => failed(error),
        }
    });
    runtime.shutdown_timeout(LATE_TASKS);
    code
}

fn failed(error: impl Display) -> i32 {
    eprintln!("Error: {error:#}");
    1
}

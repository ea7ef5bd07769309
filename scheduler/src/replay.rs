//! Replay: what was watched once is decided again, by other configurations, and what would have come of it is compared.
//!
//! ```text
//! kube-scheduler --record-trace --> recorder --+
//!                                              +--> trace (one JSON object a line) --> play (once for each configuration) --> report, plots
//! API server's audit log -------> audit -------+
//! ```
//!
//! [`crate::trace`] is the file; its recorder and [`audit`] make one; [`play`] decides it again with the very cache, queue and profiles of the running
//! scheduler, over a [`world`] in memory that stands for the API server; [`tally`] keeps the books, [`report`] and [`plot`] show them; [`command`] is the thin shell.
//! Never here: a network. Time is the trace's: a pod of a recorded hour waits an hour in no time.
//!
//! - **Invariant:** the same trace, configuration and seed give the same placement, preemptions and times.

pub mod audit;
pub mod command;
mod overlay;
pub mod play;
pub mod plot;
pub mod report;
pub mod tally;
#[cfg(test)]
mod tests;
pub mod world;

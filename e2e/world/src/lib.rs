//! A whole cluster in one process: kubelets, the scheduler and the controller manager on an API server in memory, held by one thread and
//! one clock, which goes as fast as nobody has anything to do.
//!
//! Owns: nothing but tests. What the programs stand on they are given ([`kubelet::app::testing`], `assemble` of the others); chance has a
//! seed (`chance`), so that the same seed has the same history.
//!
//! [`kubelet::app::testing`]: ../kubelet/app/testing/index.html

#[cfg(test)]
mod chance;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod tests;

//! A TCP forwarder into a network namespace: from the machine's own loopback, or from the one address of several API servers.

use std::fs::File;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};

use crate::cluster::layout::netns_path;

/// Accepts on `listen` here and connects to one of `targets` inside the namespace `netns`, for ever: to the next in turn that takes
/// the connection.
///
/// # Errors
/// It cannot listen, or the namespace cannot be entered.
pub fn run(listen: &str, netns: &str, targets: &[String]) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    let path = netns_path(netns);
    let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    // The listening socket stays in the namespace it was made in; new ones are made in the other.
    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
        .context("enter the namespace")?;
    for (turn, client) in listener.incoming().enumerate() {
        let Ok(client) = client else { continue };
        let mut targets = targets.to_vec();
        let first = turn % targets.len().max(1);
        targets.rotate_left(first);
        thread::spawn(move || {
            let mut servers = targets.iter().map(TcpStream::connect);
            if let Some(server) = servers.find_map(Result::ok) {
                let _ = client.set_nodelay(true);
                let _ = server.set_nodelay(true);
                let _ = both_ways(&client, &server);
            }
        });
    }
    Ok(())
}

fn both_ways(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    Ok(())
}

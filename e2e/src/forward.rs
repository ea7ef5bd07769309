//! A TCP forwarder from the machine's own loopback into a network namespace.

use std::fs::File;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};

use crate::cluster::layout::netns_path;

/// Accepts on `listen` here and connects to `target` inside the namespace `netns`, for ever.
///
/// # Errors
/// It cannot listen, or the namespace cannot be entered.
pub fn run(listen: &str, netns: &str, target: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    let path = netns_path(netns);
    let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    // The listening socket stays in the namespace it was made in; new ones are made in the other.
    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
        .context("enter the namespace")?;
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        let target = target.to_owned();
        thread::spawn(move || {
            if let Ok(server) = TcpStream::connect(&target) {
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

//! A session of the runtime as the far end of a stream, for whoever serves streams.

use futures::FutureExt as _;
use runtime::{RuntimeError, Session};
use streaming::Process;
use tokio::sync::mpsc;

/// The runtime's session as the streams' far end.
pub fn process(session: Session) -> Process {
    let Session {
        stdin,
        stdout,
        stderr,
        resize,
        detaches_with_stdin,
        exit,
    } = session;
    let exit = async move {
        match exit.await {
            Ok(Ok(code)) => Ok(code),
            Ok(Err(error)) => Err(RuntimeError::to_string(&error)),
            Err(_) => Err("the runtime lost the process".to_owned()),
        }
    };
    Process {
        stdin,
        stdout,
        stderr,
        resize: resize.map(sizes),
        detaches_with_stdin,
        exit: exit.boxed(),
    }
}

/// Ends with either side.
fn sizes(to: mpsc::Sender<runtime::TerminalSize>) -> mpsc::Sender<streaming::TerminalSize> {
    let (sender, mut receiver) = mpsc::channel::<streaming::TerminalSize>(1);
    tokio::spawn(async move {
        while let Some(streaming::TerminalSize { width, height }) = receiver.recv().await {
            let size = runtime::TerminalSize { width, height };
            if to.send(size).await.is_err() {
                return;
            }
        }
    });
    sender
}

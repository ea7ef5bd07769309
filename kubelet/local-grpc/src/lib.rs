//! gRPC servers on sockets of the node, for clients written in Go.
//!
//! Owns: what such a client says that HTTP does not allow. A client of grpc-go that was given the path of a socket calls the server by
//! that path (`:authority: /var/lib/kubelet/…`, or percent-encoded by newer ones); Go's servers do not look at it, while `h2` takes the request for
//! malformed. Here it becomes another name on its way in. Nothing else of a connection is changed or understood.

mod authority;
mod connection;

pub use connection::{Connection, incoming};

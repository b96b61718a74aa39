//! The contract between qctl's programs: the messages and services of `qctl.v1`, how a client
//! connects, how errors travel, where a person's installation keeps its files, and what its daemons
//! owe their machine.
//!
//! Everything that two programs must agree on lives here; nothing here imports another crate of
//! the workspace.

pub mod alarm;
pub mod client;
pub mod daemon;
pub mod error;
pub mod gpu_idle;
pub mod home;
pub mod length;
pub mod silence;
pub mod size;

/// Messages and services of package `qctl.v1`, documented in `proto/qctl/v1/*.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("qctl.v1");
}

/// Encoded `FileDescriptorSet` of the contract, for server reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Version of the worker session protocol.
pub const PROTOCOL_VERSION: i32 = 1;

/// Address a coordinator listens on unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7420";

/// Largest gRPC message either side accepts, in bytes. A batch of 10 MB of arguments fits.
pub const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;

/// Largest log chunk before compression, in bytes.
pub const MAX_CHUNK_BYTES: usize = 256 * 1024;

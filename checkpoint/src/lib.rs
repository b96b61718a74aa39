//! Published checkpoints on disk. `qctl checkpoint` makes them inside a job; the worker reads,
//! hashes, verifies and removes them. Both use this crate, so that there is one writer and one
//! reader of the format.
//!
//! ```text
//! identity.json                says whose folder this is, by its spool's id
//! checkpoints/JOB/
//!   ATTEMPT/                   where the job writes ($QCTL_CHECKPOINT_DIR)
//!   published/
//!     ATTEMPT.lock             held while one is published; says the last number given
//!     taking.ATTEMPT.NUMBER/   one that is being made from the attempt's folder
//!     copying.ATTEMPT.NUMBER/  one that is being made from other files
//!     ATTEMPT.NUMBER/          a published one, complete since it has this name
//!       manifest.json          what it is and what belongs to it
//!       files/                 its contents ($QCTL_RESUME_FROM); gone once it is not kept
//!       hash                   what the worker computed over the contents
//!       removed                its contents were removed on purpose
//!       refused                the coordinator did not take it
//! ```
//!
//! A checkpoint appears under its name by one rename, after everything in it has reached the disk.
//! Whatever is not under such a name was never published, and nobody resumes from it.

mod bundle;
mod digest;
mod folder;
mod manifest;
mod publish;
mod published;
mod walk;

pub use bundle::{BundleReader, UnpackError, Unpacker};
pub use digest::{DamageError, Hash, digest, verify};
pub use folder::{FolderError, check_folder};
pub use manifest::{Entry, FORMAT, Kind, Manifest, ManifestError};
pub use publish::{PublishError, Request, publish};
pub use published::{
    Found, Published, ReadError, is_used, open, published_folder, remove_leftovers, scan,
};
pub use walk::{MAX_DEPTH, MAX_ENTRIES, WalkError, walk};

/// Longest note, in bytes.
pub const MAX_NOTE_BYTES: usize = 500;

//! A checkpoint as one run of bytes, on its way to another machine: the manifest's length (8 bytes,
//! little-endian), the manifest, and the contents of all files in its order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::manifest::{Kind, MAX_BYTES, Manifest, ManifestError};
use crate::published::Published;
use crate::walk::MAX_ENTRIES;

const LENGTH_BYTES: u64 = 8;

/// Reads a checkpoint as a bundle.
#[derive(Debug)]
pub struct BundleReader {
    head: Vec<u8>,
    /// Path and size of the files, in order.
    files: Vec<(PathBuf, u64)>,
    total: u64,
    position: u64,
    /// The file that is being read, and where it begins and ends in the bundle.
    open: Option<(File, u64, u64)>,
}

impl BundleReader {
    /// Reads a published checkpoint from the beginning.
    pub fn new(published: &Published) -> Self {
        let manifest = published.manifest.encode();
        let mut head = (manifest.len() as u64).to_le_bytes().to_vec();
        head.extend_from_slice(&manifest);
        let root = published.files();
        let entries = published.manifest.entries.iter();
        let files: Vec<_> = entries
            .filter_map(|entry| match entry.kind {
                Kind::File { bytes, .. } => Some((root.join(&entry.path), bytes)),
                Kind::Link { .. } | Kind::Folder => None,
            })
            .collect();
        let contents: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        Self {
            total: head.len() as u64 + contents,
            head,
            files,
            position: 0,
            open: None,
        }
    }

    /// Length of the whole, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Goes on from a position.
    pub fn go_to(&mut self, position: u64) {
        self.position = position.min(self.total);
        self.open = None;
    }

    fn open_at_position(&mut self) -> io::Result<()> {
        let mut begin = self.head.len() as u64;
        for (path, bytes) in &self.files {
            let end = begin + bytes;
            if self.position < end {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(self.position - begin))?;
                self.open = Some((file, begin, end));
                return Ok(());
            }
            begin = end;
        }
        Ok(())
    }
}

impl Read for BundleReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(rest) = self
            .head
            .get(self.position as usize..)
            .filter(|rest| !rest.is_empty())
        {
            let length = rest.len().min(buffer.len());
            buffer[..length].copy_from_slice(&rest[..length]);
            self.position += length as u64;
            return Ok(length);
        }
        if self.position >= self.total || buffer.is_empty() {
            return Ok(0);
        }
        if self
            .open
            .as_ref()
            .is_none_or(|(_, _, end)| self.position >= *end)
        {
            self.open_at_position()?;
        }
        let Some((file, _, end)) = &mut self.open else {
            return Ok(0);
        };
        let most = usize::try_from(*end - self.position).unwrap_or(usize::MAX);
        let length = buffer.len().min(most);
        let read = file.read(&mut buffer[..length])?;
        if read == 0 {
            // Cut off since it was published.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

/// Why a bundle cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Its manifest is not well.
    #[error("its manifest cannot be used")]
    Manifest(#[from] ManifestError),
    /// Its manifest is too long or names too much.
    #[error("its manifest is too large")]
    TooLarge,
    /// It goes on behind its end.
    #[error("it has more bytes than its manifest says")]
    TooLong,
    /// The file system refuses.
    #[error("cannot write {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl UnpackError {
    /// True when the bundle is known to be damaged. False when it could not be written here, or a
    /// later version of the program made it.
    pub fn is_proof(&self) -> bool {
        match self {
            Self::Manifest(error) => error.is_proof(),
            Self::TooLarge | Self::TooLong => true,
            Self::Io { .. } => false,
        }
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> UnpackError + '_ {
    move |source| UnpackError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Makes a checkpoint of a bundle that comes in pieces. What it makes must be verified before it is
/// used.
#[derive(Debug)]
pub struct Unpacker {
    folder: PathBuf,
    head: Vec<u8>,
    published: Option<Published>,
    /// The next entry of the manifest.
    next: usize,
    /// The file that is being written, and how much of it is to come.
    open: Option<(File, PathBuf, u64)>,
    taken: u64,
}

impl Unpacker {
    /// Unpacks into a folder, which is emptied first.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn new(folder: PathBuf) -> Result<Self, UnpackError> {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_at(&folder)(error));
            }
            _ => {}
        }
        Ok(Self {
            folder,
            head: Vec::new(),
            published: None,
            next: 0,
            open: None,
            taken: 0,
        })
    }

    /// Bytes that were taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they are no bundle, or cannot be written.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        self.taken += bytes.len() as u64;
        if self.published.is_none() {
            bytes = self.take_head(bytes)?;
        }
        while !bytes.is_empty() {
            let Some((file, path, left)) = &mut self.open else {
                return Err(UnpackError::TooLong);
            };
            let most = usize::try_from(*left).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(bytes.len().min(most));
            file.write_all(now).map_err(io_at(path))?;
            *left -= now.len() as u64;
            bytes = rest;
            if *left == 0 {
                self.open = None;
                self.go_on()?;
            }
        }
        Ok(())
    }

    /// The checkpoint, once all of it was taken.
    pub fn finish(self) -> Option<Published> {
        self.published.filter(|published| {
            self.open.is_none() && self.next == published.manifest.entries.len()
        })
    }

    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], UnpackError> {
        let mut wanted = LENGTH_BYTES;
        let mut rest = bytes;
        for _ in 0..2 {
            let missing = wanted.saturating_sub(self.head.len() as u64);
            let length = rest
                .len()
                .min(usize::try_from(missing).unwrap_or(usize::MAX));
            self.head.extend_from_slice(&rest[..length]);
            rest = &rest[length..];
            let Some(length) = self.head.first_chunk::<{ LENGTH_BYTES as usize }>() else {
                return Ok(rest);
            };
            let length = u64::from_le_bytes(*length);
            if length > MAX_BYTES {
                return Err(UnpackError::TooLarge);
            }
            wanted = LENGTH_BYTES + length;
        }
        if (self.head.len() as u64) < wanted {
            return Ok(rest);
        }
        let manifest = Manifest::decode(&self.head[LENGTH_BYTES as usize..])?;
        if manifest.entries.len() > MAX_ENTRIES {
            return Err(UnpackError::TooLarge);
        }
        let made = Published::create(&self.folder, manifest).map_err(io_at(&self.folder))?;
        self.published = Some(made);
        self.head = Vec::new();
        self.go_on()?;
        Ok(rest)
    }

    /// Makes what has no contents, up to the next file that has.
    fn go_on(&mut self) -> Result<(), UnpackError> {
        let Some(published) = &self.published else {
            return Ok(());
        };
        let root = published.files();
        while let Some(entry) = published.manifest.entries.get(self.next) {
            self.next += 1;
            let path = root.join(&entry.path);
            let above = path.parent().unwrap_or(&root);
            fs::create_dir_all(above).map_err(io_at(above))?;
            match &entry.kind {
                Kind::Folder => fs::create_dir_all(&path).map_err(io_at(&path))?,
                Kind::Link { target } => symlink(target, &path).map_err(io_at(&path))?,
                Kind::File { bytes, executable } => {
                    let file = OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .mode(if *executable { 0o700 } else { 0o600 })
                        // Not through a link that an earlier entry has made.
                        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
                        .open(&path)
                        .map_err(io_at(&path))?;
                    if *bytes > 0 {
                        self.open = Some((file, path, *bytes));
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

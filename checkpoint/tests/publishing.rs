//! Publishing, reading back, and what is left when it is cut off anywhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use qctl_checkpoint::{
    BundleReader, DamageError, PublishError, Published, Request, UnpackError, Unpacker, is_used,
    publish, published_folder, remove_leftovers, scan, verify,
};

struct Job {
    home: tempfile::TempDir,
}

impl Job {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("42/1")).unwrap();
        Self { home }
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("42")
    }

    fn attempt(&self) -> PathBuf {
        self.folder().join("1")
    }

    fn write(&self, name: &str, contents: &str) {
        let path = self.attempt().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn publish(&self, paths: &[PathBuf]) -> Result<Published, PublishError> {
        publish(&Request {
            job: 42,
            attempt: 1,
            fence: 7,
            folder: &self.attempt(),
            paths,
            step: Some(5),
            note: "",
            upload: false,
            now: DateTime::<Utc>::UNIX_EPOCH,
        })
    }

    fn scan(&self) -> Vec<Published> {
        let found = scan(&self.folder()).unwrap();
        found
            .into_iter()
            .map(|found| found.checkpoint.unwrap())
            .collect()
    }

    fn names(&self) -> Vec<String> {
        names(&published_folder(&self.folder()))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn read(published: &Published, name: &str) -> String {
    fs::read_to_string(published.files().join(name)).unwrap()
}

#[test]
fn the_folder_is_taken_and_an_empty_one_left() {
    let job = Job::new();
    job.write("state", "17");
    job.write("model/weights", "abc");
    let first = job.publish(&[]).unwrap();
    assert_eq!((first.manifest.number, first.manifest.bytes), (1, 5));
    assert_eq!(names(&job.attempt()), [""; 0]);

    // Rewriting a file of the same name leaves the published one as it is.
    job.write("state", "18");
    let second = job.publish(&[]).unwrap();
    assert_eq!(read(&first, "state"), "17");
    assert_eq!(read(&second, "state"), "18");
    assert_eq!(job.scan(), [first, second]);
}

#[test]
fn other_files_are_copied_and_stay() {
    let job = Job::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("results.json");
    fs::write(&file, "{}").unwrap();
    let folder = elsewhere.path().join("model");
    fs::create_dir_all(folder.join("a/empty")).unwrap();
    fs::write(folder.join("a/x"), "x").unwrap();
    symlink("a/x", folder.join("latest")).unwrap();
    let published = job.publish(&[file.clone(), folder.clone()]).unwrap();
    fs::write(&file, "changed in place").unwrap();
    assert_eq!(read(&published, "results.json"), "{}");
    assert_eq!(read(&published, "model/latest"), "x");
    assert!(published.files().join("model/a/empty").is_dir());
    assert!(folder.join("a/x").exists());
}

#[test]
fn a_file_with_two_names_is_not_shared() {
    let job = Job::new();
    let outside = job.home.path().join("outside");
    fs::write(&outside, "before").unwrap();
    fs::hard_link(&outside, job.attempt().join("state")).unwrap();
    let published = job.publish(&[]).unwrap();
    fs::write(&outside, "after!").unwrap();
    assert_eq!(read(&published, "state"), "before");
}

#[test]
fn a_copy_that_was_cut_off_hinders_no_later_call() {
    let job = Job::new();
    let outside = job.home.path().join("outside");
    fs::write(&outside, "before").unwrap();
    fs::hard_link(&outside, job.attempt().join("state")).unwrap();
    // As calls leave it that were killed in the middle of a copy, or found no room for it: in the
    // folder itself, as an earlier version did, and beside it.
    job.write(".qctl-own-copy", "bef");
    let staging = published_folder(&job.folder()).join("taking.1.1");
    fs::create_dir_all(staging.join("files")).unwrap();
    fs::write(staging.join("own-copy"), "bef").unwrap();
    let published = job.publish(&[]).unwrap();
    assert_eq!(read(&published, "state"), "before");
    assert_eq!(job.names(), ["1.1", "1.lock"]);
}

#[test]
fn a_mistake_changes_nothing() {
    let job = Job::new();
    assert!(matches!(job.publish(&[]), Err(PublishError::Empty(_))));
    fs::create_dir_all(job.attempt().join("nothing/in/it")).unwrap();
    assert!(matches!(job.publish(&[]), Err(PublishError::Empty(_))));
    let hollow = [job.attempt().join("nothing")];
    assert!(matches!(job.publish(&hollow), Err(PublishError::NoFiles)));
    fs::remove_dir_all(job.attempt().join("nothing")).unwrap();
    job.write("state", "17");
    symlink("/etc/passwd", job.attempt().join("link")).unwrap();
    assert!(matches!(job.publish(&[]), Err(PublishError::Contents(_))));
    assert_eq!(names(&job.attempt()), ["link", "state"]);
    let missing = [job.home.path().join("nowhere")];
    assert!(matches!(
        job.publish(&missing),
        Err(PublishError::Missing(_))
    ));
    let state = job.attempt().join("state");
    let same = [state.clone(), state];
    assert!(matches!(job.publish(&same), Err(PublishError::SameName(_))));
    let root = [PathBuf::from("/")];
    assert!(matches!(job.publish(&root), Err(PublishError::NoName(_))));
    assert_eq!(job.scan(), []);
    assert_eq!(job.names(), ["1.lock"]);
    fs::remove_file(job.attempt().join("link")).unwrap();
    let first = job.publish(&[]).unwrap();
    assert_eq!(first.manifest.number, 1, "no mistake uses up a number");
    fs::remove_dir_all(job.attempt()).unwrap();
    assert!(matches!(job.publish(&[]), Err(PublishError::NoFolder(_))));
}

#[test]
fn what_a_killed_call_had_taken_comes_back() {
    let job = Job::new();
    // As a call leaves it that was killed between taking the folder and giving it its name.
    let taken = published_folder(&job.folder()).join("taking.1.1/files");
    fs::create_dir_all(&taken).unwrap();
    fs::write(taken.join("model"), "m").unwrap();
    fs::write(taken.join("state"), "old").unwrap();
    let copied = published_folder(&job.folder()).join("copying.1.2/files");
    fs::create_dir_all(&copied).unwrap();
    let others = published_folder(&job.folder()).join("taking.2.1");
    fs::create_dir_all(&others).unwrap();
    job.write("state", "new");
    assert_eq!(job.scan(), []);

    let published = job.publish(&[]).unwrap();
    assert_eq!(read(&published, "model"), "m");
    assert_eq!(read(&published, "state"), "new");
    assert_eq!(job.names(), ["1.1", "1.lock", "taking.2.1"]);
}

#[test]
fn numbers_are_never_used_again() {
    let job = Job::new();
    for expected in 1..=3 {
        job.write("state", "x");
        let published = job.publish(&[]).unwrap();
        assert_eq!(published.manifest.number, expected);
        published.remove().unwrap();
    }
    // The record of the last number may be lost with the machine; what is there still counts.
    job.write("state", "x");
    job.publish(&[]).unwrap();
    fs::write(published_folder(&job.folder()).join("1.lock"), "").unwrap();
    job.write("state", "x");
    assert_eq!(job.publish(&[]).unwrap().manifest.number, 5);
}

#[test]
fn calls_at_the_same_time_publish_one_after_the_other() {
    let job = Job::new();
    let numbers: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|index| {
                let file = job.home.path().join(format!("file{index}"));
                fs::write(&file, "x").unwrap();
                let job = &job;
                scope.spawn(move || job.publish(&[file]).unwrap().manifest.number)
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let distinct: std::collections::BTreeSet<_> = numbers.iter().collect();
    assert_eq!(distinct.len(), 8);
    assert_eq!(job.scan().len(), 8);
}

#[test]
fn a_manifest_cut_off_anywhere_is_no_checkpoint_and_hides_no_other() {
    let job = Job::new();
    for _ in 0..2 {
        job.write("state", "17");
        job.publish(&[]).unwrap();
    }
    let newest = job.scan().pop().unwrap();
    let manifest = newest.folder().join("manifest.json");
    let whole = fs::read(&manifest).unwrap();
    for length in 0..whole.len() - 1 {
        fs::write(&manifest, &whole[..length]).unwrap();
        let found = scan(&job.folder()).unwrap();
        let well: Vec<_> = found.iter().map(|found| found.checkpoint.is_ok()).collect();
        assert_eq!(well, [true, false], "{length}");
    }
    fs::remove_file(&manifest).unwrap();
    assert!(scan(&job.folder()).unwrap()[1].checkpoint.is_err());
    // Nor does one that belongs elsewhere.
    fs::copy(job.folder().join("published/1.1/manifest.json"), &manifest).unwrap();
    assert!(scan(&job.folder()).unwrap()[1].checkpoint.is_err());
}

#[test]
fn a_hash_cut_off_anywhere_is_none() {
    let job = Job::new();
    job.write("state", "17");
    let published = job.publish(&[]).unwrap();
    let entries = &published.manifest.entries;
    let hash = verify(&published.files(), entries, None, &|| true).unwrap();
    assert_eq!(published.hash(), None);
    published.record_hash(hash).unwrap();
    assert_eq!(published.hash(), Some(hash));
    let path = published.folder().join("hash");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() - 1 {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(published.hash(), None, "{length}");
    }
}

#[test]
fn files_cut_off_anywhere_are_damage() {
    let job = Job::new();
    job.write("state", "seventeen");
    let published = job.publish(&[]).unwrap();
    let check = || {
        verify(
            &published.files(),
            &published.manifest.entries,
            None,
            &|| true,
        )
    };
    assert!(check().is_ok());
    for length in 0.."seventeen".len() {
        fs::write(published.files().join("state"), &"seventeen"[..length]).unwrap();
        assert!(matches!(check(), Err(DamageError::Entry(_))), "{length}");
    }
}

#[test]
fn what_is_removed_leaves_its_manifest_or_nothing() {
    let job = Job::new();
    job.write("state", "17");
    assert!(is_used(&job.attempt()));
    let published = job.publish(&[]).unwrap();
    assert_eq!(names(&job.attempt()), [""; 0]);
    assert!(is_used(&job.attempt()), "something was published out of it");
    assert!(!is_used(&job.folder().join("2")));
    assert!(published.has_files());
    assert!(!published.is_removed());
    published.remove_files().unwrap();
    published.remove_files().unwrap();
    assert!(published.is_removed() && !published.has_files());
    assert_eq!(job.scan(), std::slice::from_ref(&published));
    assert!(!published.is_refused());
    published.refuse().unwrap();
    assert!(published.is_refused());
    published.remove().unwrap();
    published.remove().unwrap();
    assert_eq!(job.scan(), []);
}

#[test]
fn what_was_never_published_goes_and_nothing_else() {
    let job = Job::new();
    job.write("state", "17");
    let published = job.publish(&[]).unwrap();
    job.write("half", "written");
    fs::create_dir_all(job.folder().join("2")).unwrap();
    remove_leftovers(&job.folder(), 1).unwrap();
    assert_eq!(names(&job.folder()), ["2", "published"]);
    assert_eq!(read(&published, "state"), "17");
    // The second published nothing, and was killed while it tried.
    fs::create_dir_all(published_folder(&job.folder()).join("taking.2.1/files")).unwrap();
    fs::write(published_folder(&job.folder()).join("2.lock"), "").unwrap();
    remove_leftovers(&job.folder(), 2).unwrap();
    assert_eq!(job.names(), ["1.1", "1.lock"]);
    published.remove().unwrap();
    remove_leftovers(&job.folder(), 1).unwrap();
    assert!(!job.folder().exists());
    remove_leftovers(&job.folder(), 1).unwrap();
}

#[test]
fn a_bundle_makes_the_same_checkpoint_elsewhere() {
    let job = Job::new();
    job.write("state", "17");
    job.write("empty", "");
    job.write("model/weights", &"w".repeat(10_000));
    symlink("model/weights", job.attempt().join("latest")).unwrap();
    fs::create_dir(job.attempt().join("nothing")).unwrap();
    let published = job.publish(&[]).unwrap();
    let check = |published: &Published| {
        verify(
            &published.files(),
            &published.manifest.entries,
            None,
            &|| true,
        )
        .unwrap()
    };
    let hash = check(&published);

    let mut whole = Vec::new();
    let mut reader = BundleReader::new(&published);
    std::io::Read::read_to_end(&mut reader, &mut whole).unwrap();
    assert_eq!(reader.total(), whole.len() as u64);
    for position in [0, 5, 300, whole.len() - 9_000, whole.len()] {
        let mut rest = Vec::new();
        reader.go_to(position as u64);
        std::io::Read::read_to_end(&mut reader, &mut rest).unwrap();
        assert_eq!(rest, whole[position..], "{position}");
    }
    for piece in [1, 7, 1_000, whole.len()] {
        let folder = job.home.path().join("elsewhere");
        let mut unpacker = Unpacker::new(folder).unwrap();
        for piece in whole.chunks(piece) {
            unpacker.take(piece).unwrap();
        }
        let made = unpacker.finish().unwrap();
        assert_eq!(made.manifest, published.manifest);
        assert_eq!(check(&made), hash);
    }
}

#[test]
fn a_bundle_cut_off_or_too_long_makes_none() {
    let job = Job::new();
    job.write("state", "17");
    let published = job.publish(&[]).unwrap();
    let mut whole = Vec::new();
    std::io::Read::read_to_end(&mut BundleReader::new(&published), &mut whole).unwrap();
    let folder = job.home.path().join("elsewhere");
    for length in 0..whole.len() {
        let mut unpacker = Unpacker::new(folder.clone()).unwrap();
        unpacker.take(&whole[..length]).unwrap();
        assert_eq!(unpacker.taken(), length as u64);
        assert!(unpacker.finish().is_none(), "{length}");
    }
    let mut unpacker = Unpacker::new(folder.clone()).unwrap();
    unpacker.take(&whole).unwrap();
    assert!(matches!(unpacker.take(b"x"), Err(UnpackError::TooLong)));
    let mut unpacker = Unpacker::new(folder).unwrap();
    assert!(unpacker.take(&[0xff; 8]).is_err());
}

//! What the end of an attempt's output tells about how it ended: that a GPU had no memory left, or
//! that the job did not do what its exit code 0 claims.

use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

use crate::progress::strip;

/// Output at the end that is looked at, in bytes: some hundred lines, more than a summary or the
/// trace of an exception takes.
pub const TAIL_BYTES: usize = 16 * 1024;
/// Most memory a compiled pattern may take, in bytes.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// Lines at the end that are told of a silent attempt.
const MAX_LAST_LINES: usize = 3;
/// Longest line that is quoted, in bytes.
const MAX_QUOTE_BYTES: usize = 300;

/// How PyTorch and the CUDA runtime say that a GPU has no memory left.
static GPU_OUT_OF_MEMORY: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA error: out of memory|CUDA out of memory")
        .ok()
});

/// How CUDA and the libraries above it say that a GPU or its driver failed a program. Errors of
/// cuDNN and cuBLAS that only mean a wrong argument, or too little memory, are left out.
static GPU_FAULT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"CUDA error: |CUDA_ERROR_(?:ILLEGAL_\w+|LAUNCH_FAILED|ECC_UNCORRECTABLE|NO_DEVICE|DEVICE_UNAVAILABLE|NOT_INITIALIZED|ASSERT|HARDWARE_STACK_ERROR|SYSTEM_\w+|UNKNOWN)|cudaError(?:Illegal\w+|LaunchFailure|ECCUncorrectable|NoDevice|DevicesUnavailable|InsufficientDriver|Assert|HardwareStackError|InitializationError|Unknown)|CUDNN_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)|CUBLAS_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)|NCCL [Ee]rror|nccl(?:UnhandledCuda|Internal|System)Error|no CUDA-capable device|[Nn]o CUDA GPUs are available|CUDA driver version is insufficient|CUDA driver initialization failed|Found no NVIDIA driver|torch\.cuda\.is_available\(\) is False|device-side assert triggered|an illegal memory access was encountered|[Uu]ncorrectable ECC error|GPU is lost|Unable to determine the device handle",
    )
    .ok()
});

/// A pattern whose match in a line contradicts exit 0.
#[derive(Clone, Debug)]
pub struct Contradiction(Regex);

/// Why a pattern cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the pattern that contradicts exit 0 is not a usable regular expression")]
pub struct ContradictionError(#[source] regex::Error);

impl Contradiction {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When it is not a regular expression, or an enormous one.
    pub fn parse(text: &str) -> Result<Self, ContradictionError> {
        RegexBuilder::new(text)
            .size_limit(MAX_COMPILED_BYTES)
            .dfa_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map(Self)
            .map_err(ContradictionError)
    }
}

/// The end of an attempt's output.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    tail: Vec<u8>,
    /// The tail begins in the middle of a line.
    is_cut: bool,
    contradiction: Option<Contradiction>,
}

impl Ending {
    /// No output yet.
    pub fn new(contradiction: Option<Contradiction>) -> Self {
        Self {
            contradiction,
            ..Self::default()
        }
    }

    /// Takes output, in order.
    pub fn output(&mut self, data: &[u8]) {
        let kept = &data[data.len().saturating_sub(TAIL_BYTES)..];
        self.is_cut |= kept.len() < data.len();
        if kept.len() == TAIL_BYTES {
            self.is_cut |= !self.tail.is_empty();
            self.tail.clear();
        }
        // Cut only now and then, so that each byte is moved once at most.
        if self.tail.len() + kept.len() > 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
            self.is_cut = true;
        }
        self.tail.extend_from_slice(kept);
    }

    /// Whether it says that a GPU had no memory left.
    pub fn gpu_out_of_memory(&self) -> bool {
        GPU_OUT_OF_MEMORY
            .as_ref()
            .is_some_and(|pattern| pattern.is_match(self.tail().0))
    }

    /// The first line of its end that tells of a fault of a GPU, as it is to be quoted; the others
    /// follow from it. A GPU that had no memory left is no fault.
    pub fn gpu_fault(&self) -> Option<String> {
        if self.gpu_out_of_memory() {
            return None;
        }
        let pattern = GPU_FAULT.as_ref()?;
        let (tail, _) = self.tail();
        let mut lines = tail.split(|byte| matches!(byte, b'\n' | b'\r'));
        lines.find_map(|line| {
            let seen = strip(line);
            pattern.is_match(&seen).then(|| quote(&seen))
        })
    }

    /// The last line that contradicts exit 0, as it is to be quoted.
    pub fn contradiction(&self) -> Option<String> {
        let Contradiction(pattern) = self.contradiction.as_ref()?;
        let (tail, is_cut) = self.tail();
        let mut lines: Vec<&[u8]> = tail.split(|&byte| byte == b'\n').collect();
        if is_cut {
            lines.remove(0);
        }
        lines.into_iter().rev().find_map(|line| {
            // What a carriage return has overwritten nobody has seen.
            let line = line.trim_ascii_end();
            let seen = line.rsplit(|&byte| byte == b'\r').next()?;
            let seen = strip(seen);
            pattern.is_match(&seen).then(|| quote(&seen))
        })
    }

    /// The last lines that hold anything, as people saw them.
    pub fn last_lines(&self) -> String {
        let (tail, _) = self.tail();
        let mut lines: Vec<String> = tail
            .rsplit(|&byte| byte == b'\n')
            .filter_map(|line| {
                let seen = line.trim_ascii_end().rsplit(|&byte| byte == b'\r').next()?;
                Some(quote(&strip(seen))).filter(|line| !line.is_empty())
            })
            .take(MAX_LAST_LINES)
            .collect();
        lines.reverse();
        lines.join("\n")
    }

    fn tail(&self) -> (&[u8], bool) {
        let cut = self.tail.len().saturating_sub(TAIL_BYTES);
        (&self.tail[cut..], self.is_cut || cut > 0)
    }
}

fn quote(line: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(line.trim_ascii())
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    while text.len() > MAX_QUOTE_BYTES {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ending(output: &str) -> Ending {
        let pattern = Contradiction::parse(r"\b[1-9]\d* failed\b").unwrap();
        let mut ending = Ending::new(Some(pattern));
        ending.output(output.as_bytes());
        ending
    }

    #[test]
    fn the_last_lines_are_those_that_people_saw() {
        let ending = ending("one\ntwo\n\n 10%\r 20%\r\n\u{1b}[31mEpoch 3\u{1b}[0m, no newline");
        assert_eq!(ending.last_lines(), "two\n20%\nEpoch 3, no newline");
        assert_eq!(Ending::default().last_lines(), "");
    }

    #[test]
    fn a_gpu_without_memory_is_recognised() {
        for line in [
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
            "torch.cuda.OutOfMemoryError: CUDA out of memory.",
            "RuntimeError: CUDA error: out of memory",
            "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB",
        ] {
            assert!(
                ending(&format!("epoch 3\n{line}\n")).gpu_out_of_memory(),
                "{line}"
            );
        }
        for line in ["out of memory", "MemoryError", "CUDA error: device lost"] {
            assert!(!ending(line).gpu_out_of_memory(), "{line}");
        }
        let mut long_ago = ending("CUDA out of memory\n");
        long_ago.output(&vec![b'x'; TAIL_BYTES]);
        assert!(!long_ago.gpu_out_of_memory());
    }

    #[test]
    fn f35_a_fault_of_a_gpu_is_recognised_and_its_line_quoted() {
        for line in [
            "RuntimeError: CUDA error: an illegal memory access was encountered",
            "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
            "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "RuntimeError: No CUDA GPUs are available",
            "RuntimeError: no CUDA-capable device is detected",
            "CUDA driver version is insufficient for CUDA runtime version",
            "RuntimeError: CUDA error: device-side assert triggered",
            "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error",
            "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970",
            "RuntimeError: Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False.",
        ] {
            let output = format!(
                "Traceback\n\x1b[31m{line}\x1b[0m\nCUDA kernel errors might be asynchronous\n"
            );
            assert_eq!(ending(&output).gpu_fault().as_deref(), Some(line));
        }
        for line in [
            "using CUDA, cuDNN 9.1",
            "RuntimeError: CUDA error: out of memory",
            "CUDA out of memory\nCUDNN_STATUS_INTERNAL_ERROR",
            "CUDNN_STATUS_NOT_SUPPORTED: falling back",
            "NCCL WARN Connect to 10.0.0.2 failed",
            "12 errors",
        ] {
            assert_eq!(ending(line).gpu_fault(), None, "{line}");
        }
    }

    #[test]
    fn the_last_line_that_contradicts_is_quoted() {
        let told = |output| ending(output).contradiction();
        assert_eq!(
            told("3 failed\n\x1b[31m== \x1b[1m2 failed\x1b[0m, 7 passed in 0.5s ==\x1b[0m\n"),
            Some("== 2 failed, 7 passed in 0.5s ==".to_owned())
        );
        assert_eq!(told("0 failed, 9 passed\n"), None);
        assert_eq!(told("1 failed\r0 failed\n"), None);
        assert_eq!(
            told("7 passed, 1 failed"),
            Some("7 passed, 1 failed".to_owned())
        );
        assert_eq!(
            told("7 passed, 1 failed\r\n"),
            Some("7 passed, 1 failed".to_owned())
        );
        assert_eq!(Ending::default().contradiction(), None);
        assert!(Contradiction::parse("(").is_err());
    }

    #[test]
    fn the_rest_of_a_line_is_not_taken_for_one() {
        let mut cut = ending("no test failed, 1");
        cut.output(&vec![b'1'; TAIL_BYTES - 10]);
        cut.output(b" failed 0\nall fine\n");
        assert!(cut.is_cut || cut.tail.len() > TAIL_BYTES);
        assert_eq!(cut.contradiction(), None);
    }

    proptest! {
        #[test]
        fn the_tail_is_the_end_whatever_the_pieces(
            pieces in prop::collection::vec(0..3 * TAIL_BYTES, 0..12),
        ) {
            let mut ending = Ending::default();
            let mut all = Vec::new();
            for (index, length) in pieces.into_iter().enumerate() {
                let piece = vec![b'a' + index as u8; length];
                ending.output(&piece);
                all.extend(piece);
            }
            let expected = &all[all.len().saturating_sub(TAIL_BYTES)..];
            let (tail, is_cut) = ending.tail();
            prop_assert_eq!(tail, expected);
            prop_assert_eq!(is_cut, all.len() > TAIL_BYTES);
            prop_assert!(ending.tail.len() <= 2 * TAIL_BYTES);
        }
    }
}

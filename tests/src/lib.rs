//! The harness of the tests.
//!
//! | module | what it is for |
//! |---|---|
//! | [`packet`] | packets as sentences |
//! | [`keys`] | the tests' keys, and an independent maker of cookies |
//! | [`cases`] | the one table of packets and what is to become of each |
//! | [`oracle`] | other parsers, against which ours is held |
//! | [`guards`] | what guards are to decide, written down a second time |
//! | [`fuzz`] | what the fuzz targets check, and the replay of their corpus |
//! | [`random`] | generators of random frames |
//! | [`host`] | the packet's journey without the kernel |
//! | [`kernel`] | the program inside the kernel, fed by BPF_PROG_TEST_RUN |
//! | [`netns`] | namespaces, and the real `tfo` in them |
//! | [`config`] | configuration files, and what the protections in them have done |
//! | [`listener`] | listening sockets, as other processes hold them |
//! | [`server`] | a server that keeps what it was told |
//! | [`scrape`] | clients of its metrics |
//! | [`fault`] | system calls that fail, or kill who makes them |
//! | [`layout_0_1`] | the pins of tfo 0.1, made of those of this tfo |
//! | [`steps`] | the real `tfo`, killed between two steps of what it does |
//! | [`tap`] | an interface whose wire is a test |
//! | [`wire`] | frames past the kernel's stack |
//! | [`between`] | a wire between two kernels that a test holds |
//! | [`agree`] | kernel and host on millions of frames |
//! | [`terminal`] | a terminal as people see it, in tmux |
//! | [`walk`] | random steps of an operator, and a model of what must come of them |
//! | [`verifier`] | what the program costs the kernel's verifier |
//!
//! `src/bin` has the programs behind `cargo xtask agree` and `cargo xtask bench`.
//! `tests/host_*.rs` run on the host alone, `tests/kernel_*.rs` run the program inside the kernel, and
//! `tests/netns_*.rs` send real traffic through network namespaces.

pub mod agree;
pub mod between;
pub mod cases;
pub mod config;
pub mod fault;
pub mod fuzz;
pub mod guards;
pub mod host;
pub mod kernel;
pub mod keys;
pub mod layout_0_1;
pub mod listener;
pub mod netns;
pub mod oracle;
pub mod packet;
pub mod random;
pub mod scrape;
pub mod server;
pub mod steps;
pub mod tap;
pub mod terminal;
pub mod verifier;
pub mod walk;
pub mod wire;

//! Harness of the tests.
//!
//! | module | content |
//! |---|---|
//! | [`packet`] | builder of packets |
//! | [`keys`] | keys of the tests, and an independent maker of cookies |
//! | [`cases`] | table of packets with the expected outcome of each |
//! | [`oracle`] | other parsers, for comparison |
//! | [`guards`] | second implementation of what guards decide |
//! | [`fuzz`] | fuzz targets |
//! | [`random`] | generators of random frames |
//! | [`host`] | the packet's journey without the kernel |
//! | [`kernel`] | the program inside the kernel, fed by BPF_PROG_TEST_RUN |
//! | [`netns`] | sandboxes of namespaces, and the real `tfo` in them |
//! | [`kubernetes`] | manifests of `dist/kubernetes`, and containers that run as they say |
//! | [`random_keys`] | the real `tfo` with keys that it makes |
//! | [`config`] | configuration files, and the counts of the protections in them |
//! | [`listener`] | listening sockets, also in other processes |
//! | [`program`] | servers that know nothing of Fast Open |
//! | [`server`] | server that remembers what clients have sent |
//! | [`scrape`] | clients of the metrics |
//! | [`flood`] | forged SYNs at a steady rate |
//! | [`fault`] | system calls that fail, or kill their caller |
//! | [`layout_0_1`] | pins in the layout of tfo 0.1, for tests of upgrades |
//! | [`steps`] | the real `tfo`, killed between two system calls |
//! | [`tap`] | interface whose wire is the test |
//! | [`wire`] | frames past the kernel's stack |
//! | [`fleet`] | hosts with one address, and clients that meet another of them each time |
//! | [`two_hosts`] | two hosts, with a wire that can lose and repeat segments |
//! | [`agree`] | comparison of kernel and host on millions of frames |
//! | [`terminal`] | terminal in tmux |
//! | [`walk`] | random steps of an operator, and a model of their effects |
//! | [`unit`] | systemd's unit, in force without systemd |
//! | [`verifier`] | cost of the program to the kernel's verifier |
//!
//! `src/bin` has the programs behind `cargo xtask agree` and `cargo xtask bench`, and a server for tests.
//! `tests/host_*.rs` run on the host alone, `tests/kernel_*.rs` run the program inside the kernel, and
//! `tests/netns_*.rs` send real traffic through network namespaces.

pub mod agree;
pub mod balancer;
pub mod cases;
pub mod config;
pub mod etcd;
#[cfg(feature = "etcd")]
pub mod etcd_fleet;
pub mod fault;
pub mod fleet;
pub mod flood;
pub mod forger;
pub mod fuzz;
pub mod guards;
pub mod host;
pub mod kernel;
pub mod keys;
pub mod kubernetes;
pub mod layout_0_1;
pub mod listener;
pub mod netns;
pub mod oracle;
pub mod packet;
pub mod program;
pub mod random;
pub mod random_keys;
pub mod scrape;
pub mod server;
pub mod steps;
pub mod tap;
pub mod terminal;
pub mod two_hosts;
pub mod unit;
pub mod verifier;
pub mod walk;
pub mod wire;

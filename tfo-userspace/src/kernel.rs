//! Access to the kernel besides BPF: sysctls, counters, interfaces and sockets of the calling thread's network
//! namespace.

pub mod btf;
pub mod cgroup;
pub mod clock;
pub mod ethtool;
pub mod generic;
pub mod interface;
pub mod listeners;
pub mod locked_memory;
pub mod netlink;
pub mod netns;
pub mod release;
pub mod route;
pub mod syncookies;
pub mod sysctl;
pub mod tcp_ext;
pub mod tcp_metrics;

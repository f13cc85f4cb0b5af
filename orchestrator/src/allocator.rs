//! How the allocator of the C library gives memory back.

/// Has what is long given back to the kernel as soon as it is freed. glibc raises the length from which it does that to that
/// of what was freed last, and keeps the rest in a heap for each thread: a service that answered with megabytes, from
/// whatever thread, held several times of what its answers are allowed (mallopt(3), M_MMAP_THRESHOLD and M_ARENA_MAX).
pub fn give_back_what_is_long() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, 128 << 10), (libc::M_ARENA_MAX, 2)] {
        // SAFETY: takes numbers, and changes nothing that is allocated. A value that it does not take it leaves.
        unsafe { libc::mallopt(parameter, value) };
    }
}

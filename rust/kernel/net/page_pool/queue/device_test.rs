// SPDX-License-Identifier: GPL-2.0

//! Unit tests that bind a provider to receive queues of a network device: a port of the software
//! NIC `zcrx_sim`.

#[macros::kunit_tests(rust_kernel_net_page_pool_queue_device)]
mod tests {
    use super::super::{
        test_queue::{
            bound_queue,
            Provider, //
        },
        *, //
    };
    use crate::{
        faux,
        new_mutex,
        sync::{
            atomic::{
                atomic_load,
                Acquire,
                Relaxed, //
            },
            Completion, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
        types::Opaque,
        workqueue, //
    };

    /// Two receive queues of the device.
    const QUEUE: u32 = 1;
    const OTHER: u32 = 2;

    /// A port of the software NIC that splits headers from data, without which no provider can be
    /// bound to its queues. Dropping this restores the port's own setting.
    struct Port {
        netdev: NetDevice,
        split: u8,
    }

    impl Port {
        /// Finds the first port, or the one after `skipped` others.
        fn find(mut skipped: usize) -> Result<Self> {
            for index in 1..=64 {
                let Ok(netdev) = NetDevice::find(index) else {
                    continue;
                };

                if !is_port(&netdev.lock()) {
                    continue;
                }
                if skipped == 0 {
                    let enabled = bindings::ethtool_tcp_data_split_ETHTOOL_TCP_DATA_SPLIT_ENABLED;
                    let split = set_split(&netdev.lock(), enabled as u8);

                    return Ok(Self { netdev, split });
                }
                skipped -= 1;
            }
            Err(ENODEV)
        }
    }

    impl Deref for Port {
        type Target = NetDevice;

        fn deref(&self) -> &NetDevice {
            &self.netdev
        }
    }

    impl Drop for Port {
        fn drop(&mut self) {
            set_split(&self.netdev.lock(), self.split);
        }
    }

    /// Checks by its name whether a device is a port of the software NIC. Other devices are not
    /// touched.
    fn is_port(netdev: &LockedNetDevice<'_>) -> bool {
        // SAFETY: The device is valid, and its name has 16 bytes.
        let start = unsafe {
            (&raw const (*netdev.as_ptr()).name)
                .cast::<[u8; 4]>()
                .read()
        };

        start == *b"zsim"
    }

    /// Sets whether a device splits headers from data. Returns the setting that it had before.
    fn set_split(netdev: &LockedNetDevice<'_>, split: u8) -> u8 {
        // SAFETY: The device is valid and locked, and the lock protects its configuration.
        unsafe { core::mem::replace(&mut (*(*netdev.as_ptr()).cfg).hds_config, split) }
    }

    /// Returns whether a receive queue has a provider.
    fn has_provider(netdev: &LockedNetDevice<'_>, queue: u32) -> bool {
        // SAFETY: The device is valid and locked, and has the queue.
        let params = unsafe { (*rx_queue(netdev, queue)).mp_params };

        // The network stack looks at either of them.
        !params.mp_ops.is_null() || !params.mp_priv.is_null()
    }

    /// Returns a receive queue as a C pointer.
    fn rx_queue(netdev: &LockedNetDevice<'_>, queue: u32) -> *mut bindings::netdev_rx_queue {
        // SAFETY: The device is valid.
        let queues = unsafe { (*netdev.as_ptr())._rx };

        queues.wrapping_add(queue as usize)
    }

    /// A provider is bound to one queue at a time, and can be bound to another one after that.
    #[test]
    fn provider_is_bound_to_one_queue_at_a_time() -> Result {
        let netdev = Port::find(0)?;
        // Assert nothing while the device is locked: a failed assertion ends the test without
        // unlocking.
        let (queue, mapped) = bound_queue(netdev.lock().dma_device(QUEUE)?)?;
        let open = |provider: &Arc<ProvidedQueue<Provider>>, number| {
            ProvidedQueue::open(provider, &netdev.lock(), number, 0)
        };
        let has = |number| has_provider(&netdev.lock(), number);

        open(&queue, QUEUE)?;
        for number in [QUEUE, OTHER] {
            assert_eq!(open(&queue, number), Err(EBUSY));
            assert!(queue.is_bound());
            assert_eq!(mapped.load(Relaxed), 1);
            assert!(has(QUEUE));
            assert!(!has(OTHER));
        }
        queue.close();
        assert!(!queue.is_bound());
        assert_eq!(mapped.load(Relaxed), 0);
        assert!(!has(QUEUE));

        open(&queue, OTHER)?;
        assert!(has(OTHER));
        // A queue that has a provider refuses another one, which is not bound afterwards.
        let (second, second_mapped) = bound_queue(netdev.lock().dma_device(OTHER)?)?;
        assert_eq!(open(&second, OTHER), Err(EEXIST));
        assert!(!second.is_bound());
        assert_eq!(second_mapped.load(Relaxed), 0);
        assert!(queue.is_bound());
        queue.close();
        assert!(!has(OTHER));
        Ok(())
    }

    /// A function that another task runs, and its result.
    #[pin_data]
    struct Elsewhere<R> {
        #[pin]
        result: Mutex<Option<R>>,
        #[pin]
        done: Completion,
    }

    impl<R: Send + Unpin + 'static> Elsewhere<R> {
        /// Starts to run `f` in another task.
        fn start(f: impl FnOnce() -> R + Send + 'static) -> Result<Arc<Self>> {
            let this = Arc::pin_init(
                pin_init!(Self {
                    result <- new_mutex!(None),
                    done <- Completion::new(),
                }),
                GFP_KERNEL,
            )?;
            let worker = this.clone();

            workqueue::system_dfl().try_spawn(GFP_KERNEL, move || {
                let result = f();

                *worker.result.lock() = Some(result);
                worker.done.complete_all();
            })?;
            Ok(this)
        }

        /// Waits until the function has ended. Returns what it returned.
        fn wait(&self) -> Option<R> {
            self.done.wait_for_completion();
            self.result.lock().take()
        }
    }

    /// Waits until another task waits for the lock of the device, which the caller holds.
    fn wait_for_waiter(netdev: &LockedNetDevice<'_>) -> Result {
        /// The bit of a mutex that is set while tasks wait for it.
        const WAITERS: isize = 1;

        for _ in 0..5000 {
            // SAFETY: The device is valid, and its lock has this word, which is read in one access.
            let owner = unsafe {
                let owner = &raw mut (*netdev.as_ptr()).lock.owner;

                atomic_load(owner.cast::<isize>(), Acquire)
            };

            if owner & WAITERS != 0 {
                return Ok(());
            }
            fsleep(Delta::from_millis(1));
        }
        Err(ETIMEDOUT)
    }

    /// The network stack may uninstall the provider while a task that closes the queue waits for
    /// the device's lock. If the provider is bound again by then, perhaps to another device, that
    /// task closes the new binding.
    #[test]
    fn uninstall_during_close_leaves_nothing_bound() -> Result {
        let (netdev, other) = (Port::find(0)?, Port::find(1)?);

        for bound_again in [None, Some(&netdev), Some(&other)] {
            let unlocked = bound_again.map(|port| port.lock().reference());
            let locked = netdev.lock();
            let (queue, mapped) = bound_queue(locked.dma_device(QUEUE)?)?;
            ProvidedQueue::open(&queue, &locked, QUEUE, 0)?;
            let closed = queue.clone();
            let closer = Elsewhere::start(move || closed.close())?;
            wait_for_waiter(&locked)?;

            // SAFETY: The provider is bound to this queue, whose device is locked.
            unsafe {
                Adapter::<Provider>::uninstall(queue.params(0).mp_priv, rx_queue(&locked, QUEUE))
            };
            let state = (queue.is_bound(), mapped.load(Relaxed));
            let again = match unlocked {
                None => None,
                Some(port) if locked.is(&port) => {
                    Some(ProvidedQueue::open(&queue, &locked, OTHER, 0))
                }
                // No task locks two devices.
                Some(port) => {
                    let queue = queue.clone();

                    Elsewhere::start(move || ProvidedQueue::open(&queue, &port.lock(), OTHER, 0))?
                        .wait()
                }
            };
            let is_bound = queue.is_bound();

            drop(locked);
            closer.wait();
            assert_eq!(state, (false, 0));
            assert_eq!(again, bound_again.map(|_| Ok(())));
            assert_eq!(is_bound, bound_again.is_some());
            assert!(!queue.is_bound());
            for port in [&netdev, &other] {
                assert!(!has_provider(&port.lock(), QUEUE));
                assert!(!has_provider(&port.lock(), OTHER));
            }
        }
        Ok(())
    }

    /// Runs `f` while the kernel's warnings are suppressed.
    fn without_warnings<R>(f: impl FnOnce() -> R) -> R {
        // SAFETY: The current task is valid and runs a test. Only the task itself changes the
        // field.
        let test = unsafe { (*bindings::get_current()).kunit_test };
        // SAFETY: This is the test that the current task runs.
        let suppressed = unsafe { bindings::kunit_start_suppress_warning(test) };
        let result = f();

        // SAFETY: `suppressed` is what was started above, for the same test.
        unsafe { bindings::kunit_end_suppress_warning(test, suppressed) };
        result
    }

    /// A pool is refused if it belongs to another device, if it does not map its buffers, if they
    /// have another size, or if the device does not only write to them.
    #[test]
    fn unsuitable_pools_are_refused() -> Result {
        let netdev = Port::find(0)?;
        let locked = netdev.lock();
        let dev = locked.dma_device(QUEUE)?;
        let (queue, _mapped) = bound_queue(dev)?;
        let own = dev.as_raw();

        ProvidedQueue::open(&queue, &locked, QUEUE, 0)?;
        drop(locked);
        let unrelated = faux::Registration::new(c"page_pool_other", None)?;
        let unrelated: &Device<Bound> = unrelated.as_ref().as_ref();
        let other = unrelated.as_raw();
        let read = bindings::dma_data_direction::DMA_FROM_DEVICE;
        let both = bindings::dma_data_direction::DMA_BIDIRECTIONAL;

        for (dev, is_mapped, order, direction, want) in [
            (other, true, 0, read, Err(EINVAL)),
            (null_mut(), true, 0, read, Err(EINVAL)),
            (own, false, 0, read, Err(EOPNOTSUPP)),
            (own, true, 1, read, Err(EINVAL)),
            (own, true, u32::MAX, read, Err(EINVAL)),
            (own, true, 0, both, Err(EOPNOTSUPP)),
            // With several reasons to refuse, the error is that of the one that C checks first.
            (other, false, 1, both, Err(EINVAL)),
            (own, false, 1, both, Err(EOPNOTSUPP)),
            (own, true, 1, both, Err(EINVAL)),
            (own, true, 0, read, Ok(())),
        ] {
            let memory: KBox<Opaque<bindings::page_pool>> =
                KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;
            let pool = NonNull::new(memory.get()).ok_or(EINVAL)?;

            // SAFETY: The pool belongs to this test, and all its fields may be zero.
            unsafe {
                (*pool.as_ptr()).p.dev = dev;
                (*pool.as_ptr()).p.order = order;
                (*pool.as_ptr()).p.dma_dir = direction;
                (*pool.as_ptr()).set_dma_map(is_mapped);
            }
            // SAFETY: The pool stays valid until it is removed, and nobody uses it.
            let got = without_warnings(|| unsafe { queue.add_pool(pool) });
            let known = || queue.state.lock().pools.len();
            let (before, ()) = (known(), queue.remove_pool(pool.as_ptr()));
            let after = known();

            assert_eq!(got, want);
            assert_eq!((before, after), (usize::from(got.is_ok()), 0));
        }
        queue.close();
        Ok(())
    }

    /// A device that is about to go maps no memory any more, although it can still be locked.
    #[test]
    fn unregistered_device_is_refused() -> Result {
        let netdev = Port::find(0)?;
        let locked = netdev.lock();
        // SAFETY: The device is valid.
        let state = unsafe { &raw mut (*locked.as_ptr()).reg_state };
        let unregistering = bindings::netdev_reg_state_NETREG_UNREGISTERING as u8;
        // SAFETY: The device is locked, so that nobody else changes its state.
        let registered = unsafe { state.replace(unregistering) };
        let got = locked.dma_device(QUEUE).err();

        // SAFETY: As above.
        unsafe { state.write(registered) };
        drop(locked);
        assert_eq!(got, Some(ENODEV));
        Ok(())
    }

    /// Memory whose buffers are in pools of another provider may be in use there.
    #[test]
    fn memory_of_another_provider_is_not_unmapped() -> Result {
        let registration = faux::Registration::new(c"page_pool_queue", None)?;
        let dev: &Device<Bound> = registration.as_ref().as_ref();
        let (queue, mapped) = bound_queue(dev)?;
        let other = NonNull::<u32>::dangling().cast();

        assert!(queue.provider.mapped.claim_for(other, dev.as_raw(), 12));
        without_warnings(|| queue.remove_binding(|_| true));
        assert_eq!(mapped.load(Relaxed), 1);
        drop(queue);
        assert_eq!(mapped.load(Relaxed), 0);
        Ok(())
    }
}

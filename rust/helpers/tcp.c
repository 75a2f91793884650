// SPDX-License-Identifier: GPL-2.0

#include <net/rps.h>
#include <net/sock.h>

#ifdef CONFIG_INET

__rust_helper void rust_helper_lock_sock(struct sock *sk)
{
	lock_sock(sk);
}

__rust_helper void rust_helper_sock_rps_record_flow(const struct sock *sk)
{
	sock_rps_record_flow(sk);
}

__rust_helper bool rust_helper_sock_flag(const struct sock *sk,
					 enum sock_flags flag)
{
	return sock_flag(sk, flag);
}

__rust_helper int rust_helper_sock_error(struct sock *sk)
{
	return sock_error(sk);
}

__rust_helper bool rust_helper_sk_is_rcv_shutdown(const struct sock *sk)
{
	return READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN;
}

#endif

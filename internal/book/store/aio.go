package store

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syncer puts files on the disk without holding a processor. A thread in
// fdatasync keeps the processor that it ran Go code on until the runtime takes
// it away, which is up to 10 ms later; with one processor the whole process
// stands still so long. Linux AIO syncs on a thread of the kernel and tells an
// eventfd, which the runtime waits for as for a socket. Safe for concurrent use.
type syncer struct {
	mu   sync.Mutex
	free []*aioQueue
}

// Commands and flags of linux/aio_abi.h.
const (
	aioFsync     = 2
	aioFdatasync = 3
	aioResFD     = 1
)

// aioControl is struct iocb, aioEvent struct io_event. What has no name is not
// used by a sync.
type aioControl struct {
	_                uint64    // data
	_                [2]uint32 // key, rw_flags
	op               uint16
	_                int16 // reqprio
	fd               uint32
	_                [2]uint64 // buf, nbytes
	_                int64     // offset
	_                uint64    // reserved
	flags, completes uint32
}

type aioEvent struct {
	data, obj uint64
	res, res2 int64
}

// aioQueue has at most one call in flight.
type aioQueue struct {
	ctx  uintptr
	done *os.File // eventfd
	fd   uint32   // the same
	call aioControl
	ev   aioEvent
}

// errNoAIO means that nothing was begun: this kernel, its limits or the file do
// not allow it.
var errNoAIO = errors.New("no asynchronous sync")

// sync does op, aioFsync or aioFdatasync, on the file fd, which the caller keeps
// open.
func (s *syncer) sync(fd int, op uint16) error {
	q, err := s.take()
	if err == nil {
		err = q.run(fd, op)
		s.mu.Lock()
		s.free = append(s.free, q)
		s.mu.Unlock()
	}
	if !errors.Is(err, errNoAIO) {
		return err
	}
	for {
		if op == aioFsync {
			err = unix.Fsync(fd)
		} else {
			err = unix.Fdatasync(fd)
		}
		if err != unix.EINTR {
			return err
		}
	}
}

func (s *syncer) take() (*aioQueue, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		q := s.free[n-1]
		s.free = s.free[:n-1]
		return q, nil
	}
	return newAIOQueue()
}

func newAIOQueue() (*aioQueue, error) {
	q := &aioQueue{}
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&q.ctx)), 0); e != 0 {
		return nil, errNoAIO
	}
	runtime.AddCleanup(q, func(ctx uintptr) { unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0) }, q.ctx)
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errNoAIO
	}
	q.done, q.fd = os.NewFile(uintptr(fd), "eventfd"), uint32(fd)
	return q, nil
}

func (q *aioQueue) run(fd int, op uint16) error {
	q.call = aioControl{op: op, fd: uint32(fd), flags: aioResFD, completes: q.fd}
	call := &q.call
	if n, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, q.ctx, 1, uintptr(unsafe.Pointer(&call))); e != 0 || n != 1 {
		return errNoAIO
	}
	var count [8]byte
	_, err := q.done.Read(count[:])
	for {
		// After the eventfd this does not wait; should that have failed, it does.
		_, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.ctx, 1, 1, uintptr(unsafe.Pointer(&q.ev)), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return errors.Join(os.NewSyscallError("io_getevents", e), err)
		}
		break
	}
	if q.ev.res < 0 {
		return unix.Errno(-q.ev.res)
	}
	return err
}

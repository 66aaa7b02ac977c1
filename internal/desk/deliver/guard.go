package deliver

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

// A sink may be broken; that must not take the gate down. Everything that is
// asked of one is asked through the functions of this file.

// guarded sends with a bound in time, and takes a panic for an answer that
// nobody understood.
func guarded(ctx context.Context, most time.Duration, s Sink, b *Batch) (res Result) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			res = Result{Class: Retry, Ambiguous: true, Cause: "panic", Detail: scrub(fmt.Sprintf("%v\n%s", p, debug.Stack()))}
		}
	}()
	return s.Send(ctx, b)
}

// Renew has the credential of a sink read again, if it is a Renewer; a panic is
// an error.
func Renew(s Sink) (changed bool, err error) {
	r, ok := s.(Renewer)
	if !ok {
		return false, nil
	}
	defer noPanic(&err)
	return r.Renew()
}

// tested is what the test of a sink says; a panic is an error.
func tested(ctx context.Context, s Sink) (err error) {
	defer noPanic(&err)
	return s.Test(ctx)
}

// limitsOf are the limits of a sink; after a panic none, which are made the
// least that there can be.
func limitsOf(s Sink) (l Limits, err error) {
	defer noPanic(&err)
	return s.Limits(), nil
}

// gradeOf names the grade of a sink, and nothing after a panic.
func gradeOf(s Sink) (name string, err error) {
	defer noPanic(&err)
	return s.Grade().String(), nil
}

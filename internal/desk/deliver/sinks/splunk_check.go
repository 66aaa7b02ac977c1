package sinks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Test implements deliver.Sink: it asks for the collector's health, sends it a
// request without events, which only a good token gets "no data" for, and asks
// for an acknowledgement.
func (s *Splunk) Test(ctx context.Context) error {
	l := newSplunkLane(s)
	a, err := s.client.Do(ctx, http.MethodGet, splunkHealth, nil, nil)
	if err != nil {
		return fmt.Errorf("the event collector cannot be asked: %s", s.detail(err.Error()))
	}
	l.learn(a)
	if err := s.healthy(a); err != nil {
		return err
	}
	if err := l.testToken(ctx); err != nil || !s.ack {
		return err
	}
	if a, err = l.poll(ctx, 0); err != nil {
		return fmt.Errorf("acknowledgements cannot be asked for: %s", s.detail(err.Error()))
	}
	if _, err := splunkAcked(a, 0); err != nil {
		return errors.New(s.advise(a, splunkParse(a)))
	}
	return nil
}

// healthy reads the health check.
func (s *Splunk) healthy(a *Answer) error {
	switch code := splunkParse(a).code; {
	case a.Status == http.StatusOK:
		return nil
	case code == 18:
		return errors.New("the collector is unhealthy: its queues are full (code 18); records wait until they are not")
	case code == 19 && s.ack:
		return errors.New("the collector is unhealthy: its acknowledgement service is away (code 19); records wait until it is back")
	case code == 19:
		return nil
	case code == 20:
		return errors.New("the collector is unhealthy: its queues are full and its acknowledgement service is away (code 20)")
	}
	return errors.New("health: " + s.advise(a, splunkParse(a)))
}

// testToken sends no event. Code 5 comes after the token and the channel were
// looked at.
func (l *splunkLane) testToken(ctx context.Context) error {
	a, err := l.offer(ctx, nil)
	if err != nil {
		return fmt.Errorf("the event collector cannot be asked: %s", l.s.detail(err.Error()))
	}
	p := splunkParse(a)
	if a.Status == http.StatusBadRequest && p.code == 5 || a.Status == http.StatusOK && p.code == 0 {
		return nil
	}
	return errors.New(l.s.advise(a, p))
}

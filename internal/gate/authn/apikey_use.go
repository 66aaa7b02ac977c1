package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gatebook/gatebook/internal/kv"
)

// How often the newest uses of keys are stored, and of how many keys at most
// each time: a thousand keys in use cost a write every quarter of a second, and
// what is lost when the process is killed is minutes of a coarse time.
const (
	useEvery = time.Minute
	useMost  = 256
)

// readUses reads the newest uses of all secrets.
func readUses(ctx context.Context, store kv.Store, into map[string]int64) error {
	err := store.Range(ctx, useTableName, func(id string, value []byte) error {
		uses := map[string]int64{}
		if err := json.Unmarshal(value, &uses); err != nil {
			return fmt.Errorf("uses of API key %q: %w", id, kv.ErrDamaged)
		}
		for secret, at := range uses {
			into[secret] = at
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the uses of API keys: %w", err)
	}
	return nil
}

// Run stores from time to time when keys were last used, until ctx ends; then
// once more. An error of the store is logged and the writing tried again: no
// request depends on it.
func (k *APIKeys) Run(ctx context.Context) error {
	tick := time.NewTicker(useEvery)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-tick.C:
		}
		if err := k.WriteUses(context.WithoutCancel(ctx)); err != nil {
			k.log.Warn("the newest uses of API keys could not be stored", "error", err.Error())
		}
	}
	return nil
}

// WriteUses stores the newest uses of up to 256 keys whose stored ones are out of
// date, the least recently used first.
func (k *APIKeys) WriteUses(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	type due struct {
		id   string
		uses map[string]int64
		at   int64
	}
	var list []due
	t := k.table.Load()
	for id, key := range t.byID {
		d := due{id: id, uses: map[string]int64{}}
		stale := false
		for i := range key.Secrets {
			s := &key.Secrets[i]
			name, at := key.secretID(s), t.bySecret[s.Hash].used.Load()
			if at > 0 {
				d.uses[name], d.at = at, max(d.at, at)
			}
			stale = stale || at > k.seen[name]
		}
		if stale {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b due) int { return int(a.at - b.at) })
	var errs []error
	for _, d := range list[:min(len(list), useMost)] {
		b, err := json.Marshal(d.uses)
		if err == nil {
			err = k.store.Put(ctx, useTableName, d.id, b, time.Time{})
		}
		if err != nil {
			errs = append(errs, err)
			break
		}
		for name, at := range d.uses {
			k.seen[name] = at
		}
	}
	return errors.Join(errs...)
}

package keyring

import (
	"context"
	"fmt"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/seal"
)

// A Rewrapping moves data keys to the newest key-encryption key.
type Rewrapping struct {
	KEKs   *seal.KEKs
	Retire string // id of a key-encryption key that no longer wraps a key; "" if all stay
	DryRun bool
	Topic  string
	Now    func() time.Time

	// Read calls f with the records of a partition, to its end.
	Read func(ctx context.Context, partition int32, f func(*pipeline.Record) error) error
}

// Rewrapped is the result of a [Rewrapping]. Of each subject that is left, a key cannot be
// unwrapped, because its key-encryption key is missing or another one.
type Rewrapped struct {
	Keys      int            `json:"keys"`      // that are not destroyed
	Changed   int            `json:"changed"`   // or would be, in a dry run
	Destroyed int            `json:"destroyed"` // keys of forgotten subjects that were not destroyed yet
	By        map[string]int `json:"by"`        // number of keys by the key-encryption keys that wrap them, afterwards
	Only      map[string]int `json:"only"`      // number of keys that only this key-encryption key wraps, afterwards
	Left      []LeftSubject  `json:"left"`
}

// A LeftSubject has a key that could not be unwrapped.
type LeftSubject struct {
	Subject string `json:"subject"`
	Reason  string `json:"reason"`
}

// rewrapBatch is the number of keys that are written at a time.
const rewrapBatch = 512

// Run goes over the key topic. It can be run again at any time: after an error or a kill it
// does the rest. Processes may create keys and forget subjects meanwhile.
//
// A key that was destroyed while it was written again would come back. So Run reads each
// partition a second time, and destroys the keys of forgotten subjects.
func (x *Rewrapping) Run(ctx context.Context, out RecordWriter, partitions int) (Rewrapped, error) {
	r := Rewrapped{By: map[string]int{}, Only: map[string]int{}, Left: []LeftSubject{}}
	for p := range int32(partitions) {
		if err := x.partition(ctx, out, p, &r); err != nil {
			return r, fmt.Errorf("partition %d of %s: %w; run the command again: it does the rest", p, x.Topic, err)
		}
	}
	return r, nil
}

// keyLog is the content of a partition of the key topic.
type keyLog struct {
	order  []string          // record keys of data keys, in the order of their first record
	values map[string][]byte // by record key; nil: destroyed
	erased map[string]bool   // forgotten subjects
}

func (x *Rewrapping) read(ctx context.Context, partition int32) (keyLog, error) {
	l := keyLog{values: map[string][]byte{}, erased: map[string]bool{}}
	err := x.Read(ctx, partition, func(r *pipeline.Record) error {
		subject, isKey, err := seal.ParseRecordKey(r.Key)
		switch {
		case err != nil: // rings skip it, too, and count it
		case !isKey:
			l.erased[subject] = true
		default:
			if _, known := l.values[string(r.Key)]; !known {
				l.order = append(l.order, string(r.Key))
			}
			l.values[string(r.Key)] = slices.Clone(r.Value)
		}
		return nil
	})
	return l, err
}

func (x *Rewrapping) partition(ctx context.Context, out RecordWriter, partition int32, r *Rewrapped) error {
	l, err := x.read(ctx, partition)
	if err != nil {
		return err
	}
	var changed []seal.Record
	for _, key := range l.order {
		subject, _, _ := seal.ParseRecordKey([]byte(key))
		if l.values[key] == nil || l.erased[subject] {
			continue
		}
		r.Keys++
		record, keks, isNew, err := x.KEKs.Rewrap(seal.Record{Key: []byte(key), Value: l.values[key]}, x.Retire)
		if err != nil {
			r.Left = append(r.Left, LeftSubject{subject, err.Error()})
		}
		for _, id := range keks {
			r.By[id]++
		}
		if len(keks) == 1 {
			r.Only[keks[0]]++
		}
		if isNew {
			changed = append(changed, record)
		}
	}
	r.Changed += len(changed)
	if len(changed) > 0 && !x.DryRun {
		if err := x.write(ctx, out, partition, changed); err != nil {
			return err
		}
		if l, err = x.read(ctx, partition); err != nil {
			return err
		}
	}
	var nulls []seal.Record
	for _, key := range l.order {
		if subject, _, _ := seal.ParseRecordKey([]byte(key)); l.erased[subject] && l.values[key] != nil {
			nulls = append(nulls, seal.Record{Key: []byte(key)})
		}
	}
	r.Destroyed += len(nulls)
	if x.DryRun {
		return nil
	}
	return x.write(ctx, out, partition, nulls)
}

// write writes records and waits until they are acknowledged.
func (x *Rewrapping) write(ctx context.Context, out RecordWriter, partition int32, records []seal.Record) error {
	for batch := range slices.Chunk(records, rewrapBatch) {
		results := NewResults(len(batch))
		for _, r := range batch {
			out.Write(ctx, &pipeline.Record{Topic: x.Topic, Partition: partition, Key: r.Key, Value: r.Value, Time: x.Now()}, results.Add)
		}
		if err := results.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/linkedin/goavro/v2"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"millrace/schemas"
)

// partitions is the number of partitions of every topic of the benchmark.
const partitions = 4

// users is the number of users, and of rows in the lookup table.
const users = 10_000

// An eventKind is a type of event. Its value is encoded once and copied for each event,
// with another id and aggregate written over it.
type eventKind struct {
	name  string
	value []byte // with schema id
	id    int    // offset in value of the last 12 digits of the id
	keys  []int  // offsets of the aggregate's number, 8 digits
	user  int    // offset of the user's number, 8 digits; 0 if there is none
}

// Placeholders in the encoded values.
const (
	noID   = "4707dafd-3ce1-4973-9f7b-000000000000"
	noKey  = "-99999999"
	noUser = "-88888888"
)

// kinds registers the event types for a topic and encodes an event of each.
func kinds(ctx context.Context, registry *sr.Client, topic string) ([]eventKind, error) {
	metadata := map[string]any{"channel": "web", "region": "eu"}
	var out []eventKind
	for _, k := range []struct {
		name string
		data map[string]any
	}{
		{"OrderCreated", map[string]any{
			"id": "o" + noKey, "user_id": "u" + noUser, "total_amount": 28.5,
			"items": []any{
				map[string]any{"product_id": "cd-17", "quantity": int32(1), "price": 11.5},
				map[string]any{"product_id": "lp-3", "quantity": int32(2), "price": 8.5},
			},
		}},
		{"UserCreated", map[string]any{"id": "u" + noKey, "email": "user" + noKey + "@example.com", "name": "User Example"}},
	} {
		codec, text, err := codecOf(k.name)
		if err != nil {
			return nil, err
		}
		registered, err := registry.CreateSchema(ctx, topic+"-shop."+k.name, sr.Schema{Schema: text})
		if err != nil {
			return nil, err
		}
		value := binary.BigEndian.AppendUint32([]byte{0}, uint32(registered.ID))
		value, err = codec.BinaryFromNative(value, map[string]any{
			"id": noID, "type": k.name, "timestamp": time.UnixMilli(1_760_000_000_000), "version": int32(1), "metadata": metadata, "data": k.data,
		})
		if err != nil {
			return nil, err
		}
		kind := eventKind{name: k.name, value: value, id: bytes.Index(value, []byte(noID)) + len(noID) - 12}
		for at := 0; ; {
			next := bytes.Index(value[at:], []byte(noKey))
			if next < 0 {
				break
			}
			at += next + 1
			kind.keys = append(kind.keys, at)
		}
		kind.user = bytes.Index(value, []byte(noUser)) + 1
		out = append(out, kind)
	}
	return out, nil
}

// codecOf returns goavro's codec for a schema of package schemas, and the schema's text.
func codecOf(name string) (*goavro.Codec, string, error) {
	text, err := schemas.FS.ReadFile(name + ".avsc")
	if err != nil {
		return nil, "", err
	}
	codec, err := goavro.NewCodec(string(text))
	return codec, string(text), err
}

// event returns the nth event. Three of four events are orders.
func event(kinds []eventKind, n int) *kgo.Record {
	k := &kinds[0]
	if n%4 == 3 {
		k = &kinds[1]
	}
	memory := make([]byte, 0, len(k.value)+10)
	memory = append(memory, k.value...)
	value := memory[:len(memory):len(memory)]
	digits(value[k.id:k.id+12], n)
	aggregate := n / 8 % 10_000_000
	for _, at := range k.keys {
		digits(value[at:at+8], aggregate)
	}
	if k.user > 0 {
		digits(value[k.user:k.user+8], n*7919%users)
	}
	key := append(memory[len(memory):], k.name[0]|0x20, '-')
	key = append(key, value[k.keys[0]:k.keys[0]+8]...)
	return &kgo.Record{Key: key, Value: value}
}

// digits writes n in decimal, with leading zeros.
func digits(to []byte, n int) {
	for i := len(to) - 1; i >= 0; i-- {
		to[i], n = byte('0'+n%10), n/10
	}
}

// usersCSV returns the lookup table.
func usersCSV() []byte {
	var text bytes.Buffer
	text.WriteString("id,email,name,status\n")
	for i := range users {
		fmt.Fprintf(&text, "u-%08d,user%d@example.com,Customer %d,active\n", i, i, i)
	}
	return text.Bytes()
}

// fill writes n events to a topic and returns the mean size of key and value in bytes.
func fill(ctx context.Context, cluster []string, kinds []eventKind, topic string, n int) (int, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(cluster...), kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(20*time.Millisecond), kgo.ProducerBatchMaxBytes(900_000))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	var failed firstError
	size := 0
	for i := range n {
		r := event(kinds, i)
		size += len(r.Key) + len(r.Value)
		cl.Produce(ctx, r, func(_ *kgo.Record, err error) { failed.set(err) })
	}
	if err := cl.Flush(ctx); err != nil {
		return 0, err
	}
	return size / n, failed.get()
}

// firstError keeps the first error. It is safe for concurrent use.
type firstError struct {
	mu  sync.Mutex
	err error // guarded by mu
}

func (f *firstError) set(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

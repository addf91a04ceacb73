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

// partitions is how many every topic of the benchmark has.
const partitions = 4

// users is how many of them there are, and rows of the table that is looked up.
const users = 10_000

// An eventKind is one type of event: encoded once, and then given another id,
// and another aggregate, for each event.
type eventKind struct {
	name  string
	value []byte // framed
	id    int    // where in value its last 12 digits stand
	keys  []int  // where the aggregate's number stands, 8 digits
	user  int    // where the number of a user stands, 8 digits; 0 if nowhere
}

const (
	noID   = "4707dafd-3ce1-4973-9f7b-000000000000"
	noKey  = "-99999999"
	noUser = "-88888888"
)

// kinds registers the types for a topic and returns an event of each.
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

// codecOf returns goavro's codec for a shipped schema, and the schema.
func codecOf(name string) (*goavro.Codec, string, error) {
	text, err := schemas.FS.ReadFile(name + ".avsc")
	if err != nil {
		return nil, "", err
	}
	codec, err := goavro.NewCodec(string(text))
	return codec, string(text), err
}

// event returns the nth event: of four, three are orders.
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

// digits writes n in decimal, with zeros in front.
func digits(to []byte, n int) {
	for i := len(to) - 1; i >= 0; i-- {
		to[i], n = byte('0'+n%10), n/10
	}
}

// usersCSV is the table.
func usersCSV() []byte {
	var text bytes.Buffer
	text.WriteString("id,email,name,status\n")
	for i := range users {
		fmt.Fprintf(&text, "u-%08d,user%d@example.com,Customer %d,active\n", i, i, i)
	}
	return text.Bytes()
}

// fill writes n events to a topic and returns their average size, key and value.
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

// firstError keeps the first of several errors. It is safe for concurrent use.
type firstError struct {
	mu  sync.Mutex
	err error
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

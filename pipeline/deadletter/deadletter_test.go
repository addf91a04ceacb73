package deadletter_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
)

// drawRecord draws a record as a source topic holds it.
func drawRecord(t *rapid.T) pipeline.Record {
	r := pipeline.Record{
		Topic:     rapid.StringMatching(`[a-z._-]{1,20}`).Draw(t, "topic"),
		Partition: rapid.Int32Min(0).Draw(t, "partition"),
		Offset:    rapid.Int64Min(0).Draw(t, "offset"),
		Key:       rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "key"),
		Value:     rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(t, "value"),
		Time:      drawTime(t, "record time"),
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "headers") {
		r.Headers = append(r.Headers, pipeline.Header{
			Key:   rapid.SampledFrom([]string{"traceparent", "ce_id", "dlq", "dlqx.reason", ""}).Draw(t, fmt.Sprint("header", i)),
			Value: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, fmt.Sprint("header value", i)),
		})
	}
	return r
}

func drawTime(t *rapid.T, label string) time.Time {
	return time.Unix(rapid.Int64Range(0, 1<<34).Draw(t, label), rapid.Int64Range(0, 1e9-1).Draw(t, label+" ns")).UTC()
}

func sameHeaders(a, b []pipeline.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Key != b[i].Key || !bytes.Equal(a[i].Value, b[i].Value) {
			return false
		}
	}
	return true
}

func TestParseReturnsWhatNewWrote(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawRecord(t)
		had := fmt.Sprintf("%#v", in)
		want := deadletter.Letter{
			SourceTopic: in.Topic, SourcePartition: in.Partition, SourceOffset: in.Offset,
			Pipeline: rapid.String().Draw(t, "pipeline"),
			Stage:    rapid.String().Draw(t, "stage"),
			Reason:   pipeline.Reason(rapid.StringMatching(`[a-z_]{1,12}`).Draw(t, "reason")),
			Attempt:  1,
			Time:     drawTime(t, "now"),
		}
		cause := pipeline.Reject(want.Reason, "%s", rapid.StringN(0, 2000, 4000).Draw(t, "text"))
		letter := deadletter.New(&in, "dead", want.Pipeline, want.Stage, cause, want.Time)
		if rapid.Bool().Draw(t, "derived") {
			d := event.Derived{ID: []byte(rapid.String().Draw(t, "id")), Key: []byte(rapid.String().Draw(t, "event key")), Time: drawTime(t, "event time")}
			deadletter.AddEnvelope(d, &letter)
			want.EventID, want.EventKey, want.EventTime = string(d.ID), string(d.Key), d.Time
		}
		if limit := rapid.IntRange(0, 4000).Draw(t, "limit"); limit < letter.Size() {
			deadletter.Truncate(&letter, limit)
			want.Truncated = len(in.Value)
		}

		got := deadletter.Parse(&letter)
		// The error text is a prefix of the error, without a part of a character.
		if text := cause.Error(); !strings.HasPrefix(text, got.Error) || len(got.Error) > 1024 || len(got.Error) < min(len(text), 1024-utf8.UTFMax) || !utf8.ValidString(got.Error) {
			t.Fatalf("error text %q of %q", got.Error, text)
		}
		want.Error = got.Error
		if got != want {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
		if letter.Topic != "dead" || letter.Partition != pipeline.KeyPartition {
			t.Fatalf("addressed to %s/%d", letter.Topic, letter.Partition)
		}
		if fmt.Sprintf("%#v", in) != had {
			t.Fatal("the record itself changed")
		}
	})
}

func TestOriginalIsTheRecordAndCountsAttempts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawRecord(t)
		record := in
		for n := 1; n <= 3; n++ {
			letter := deadletter.New(&record, "dead", "p", "s", errors.New("bad"), time.Now())
			deadletter.AddEnvelope(event.Derived{ID: []byte("e"), Time: time.Now()}, &letter)
			if got := deadletter.Parse(&letter).Attempt; got != n {
				t.Fatalf("failure %d has attempt %d", n, got)
			}
			if copied := deadletter.Copy(&letter); deadletter.IsCopy(&letter) || !deadletter.IsCopy(&copied) || deadletter.Parse(&copied) != deadletter.Parse(&letter) {
				t.Fatalf("the copy of %v is %v", letter, copied)
			} else if again := deadletter.Copy(&copied); !sameHeaders(again.Headers, copied.Headers) {
				t.Fatalf("the copy of a copy has headers %v", again.Headers)
			}
			record = deadletter.Original(&letter)
			if record.Topic != in.Topic || record.Partition != pipeline.KeyPartition || !bytes.Equal(record.Key, in.Key) || !bytes.Equal(record.Value, in.Value) || !record.Time.Equal(in.Time) {
				t.Fatalf("%+v\nwas %+v", record, in)
			}
			if plain := deadletter.Plain(&record); !sameHeaders(plain.Headers, in.Headers) {
				t.Fatalf("headers %v\nwere %v", plain.Headers, in.Headers)
			}
			if got := deadletter.Parse(&record).Attempt; got != n || len(record.Headers) != len(in.Headers)+3 {
				t.Fatalf("after failure %d the record has attempt %d and headers %v", n, got, record.Headers)
			}
			partition, offset, ok := deadletter.RedrivenFrom(&record)
			if string(deadletter.RedrivenTo(&record)) != "p" || partition != in.Partition || offset != in.Offset || !ok {
				t.Fatalf("sent back to %q from %d/%d", deadletter.RedrivenTo(&record), partition, offset)
			}
			record.Partition, record.Offset = in.Partition, in.Offset
		}
	})
}

func TestTruncateKeepsTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawRecord(t)
		letter := deadletter.New(&in, "dead", "p", "s", errors.New("bad"), time.Now())
		whole := letter.Size()
		limit := rapid.IntRange(0, 2*whole).Draw(t, "limit")
		deadletter.Truncate(&letter, limit)
		size := deadletter.Parse(&letter).Truncated
		if whole <= limit {
			if size != 0 || letter.Size() != whole || !bytes.Equal(letter.Value, in.Value) {
				t.Fatalf("a letter of %d bytes was cut for a limit of %d", whole, limit)
			}
			return
		}
		if size != len(in.Value) || !bytes.HasPrefix(in.Value, letter.Value) {
			t.Fatalf("size %d of a value of %d bytes, %d remain", size, len(in.Value), len(letter.Value))
		}
		const room = 64 // for the header that Truncate adds
		if fixed := whole - len(in.Value); fixed+room <= limit && letter.Size() > limit {
			t.Fatalf("%d bytes, limit %d", letter.Size(), limit)
		}
	})
}

func TestParseOfUnreadableHeaders(t *testing.T) {
	r := pipeline.Record{}
	for _, name := range []string{"source.topic", "source.partition", "source.offset", "attempt", "time", "truncated", "event.time"} {
		r.Headers = append(r.Headers, pipeline.Header{Key: "dlq." + name, Value: []byte("x")})
	}
	want := deadletter.Letter{SourceTopic: "x", SourcePartition: -1, SourceOffset: -1, Attempt: 1, Truncated: -1}
	if got := deadletter.Parse(&r); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	want = deadletter.Letter{SourcePartition: -1, SourceOffset: -1, Attempt: 1}
	if got := deadletter.Parse(&pipeline.Record{}); got != want {
		t.Errorf("without headers: got %+v, want %+v", got, want)
	}
}

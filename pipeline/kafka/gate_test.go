package kafka

import (
	"math"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"millrace/pipeline"
)

// A gate accepts exactly the records that a broker accepts by the rules of Apache Kafka,
// and that the client can write with their time. Its own time is always accepted.
func TestGateAcceptsWhatTheTopicAccepts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "now"))
		limit := Limit{
			Bytes:      rapid.IntRange(batchHead, 5000).Draw(t, "bytes"),
			Before:     time.Duration(rapid.Int64Range(0, 1e6).Draw(t, "before")) * time.Millisecond,
			After:      time.Duration(rapid.Int64Range(0, 1e6).Draw(t, "after")) * time.Millisecond,
			AppendTime: rapid.Bool().Draw(t, "append time"),
			Keyed:      rapid.Bool().Draw(t, "keyed"),
		}
		gate := Limits{"t": limit}.Gate("t", func() time.Time { return now })
		for range 5 {
			now = now.Add(time.Duration(rapid.Int64Range(0, 1e6).Draw(t, "later")) * time.Millisecond)
			at := time.UnixMilli(rapid.OneOf(
				rapid.Int64Range(now.UnixMilli()-2e6, now.UnixMilli()+2e6),
				rapid.Int64Range(-1e15, 1e15),
			).Draw(t, "time"))
			size := rapid.IntRange(0, 6000).Draw(t, "size")
			var key []byte
			if rapid.Bool().Draw(t, "has a key") {
				key = []byte{}
			}
			ahead := at.UnixMilli() - now.UnixMilli()
			timeOK := limit.AppendTime ||
				at.UnixMilli() >= 0 && at.UnixMilli() <= lastMilli &&
					(limit.After == 0 || ahead <= limit.After.Milliseconds()) && (limit.Before == 0 || -ahead <= limit.Before.Milliseconds())
			var want pipeline.Reason
			switch {
			case size > limit.Bytes-batchHead:
				want = pipeline.ReasonTooLarge
			case key == nil && limit.Keyed:
				want = pipeline.ReasonNoKey
			case !timeOK:
				want = pipeline.ReasonBadTime
			}
			if err := gate.Check(size, key, at); pipeline.ReasonOf(err) != want || (err == nil) != (want == "") {
				t.Fatalf("%d bytes, key %v, %v ahead: %v, want %q", size, key, time.Duration(ahead)*time.Millisecond, err, want)
			}
			got := gate.Time(at)
			if timeOK && !got.Equal(at) || !timeOK && !got.Equal(now) {
				t.Fatalf("the time %v became %v at %v", at, got, now)
			}
		}
	})
}

func TestGateNamesTheTopicAndTheSetting(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	gate := Limits{"t": {After: time.Hour, Before: 2 * time.Hour, Keyed: true}}.Gate("t", func() time.Time { return now })
	for _, test := range []struct {
		size int
		key  []byte
		at   time.Time
		want string
	}{
		{10, []byte("k"), now, ""},
		{10, []byte("k"), time.Time{}, "bad_time: 0001-01-01T00:00:00Z is before 1970, which a Kafka record's time cannot be"},
		{10, []byte("k"), now.Add(time.Hour), ""},
		{10, []byte("k"), now.Add(time.Hour + time.Millisecond), "bad_time: the time 2026-01-02T04:04:05.001Z: t takes at most 1h0m0s ahead of the clock (message.timestamp.after.max.ms)"},
		{10, []byte("k"), now.Add(-3 * time.Hour), "bad_time: the time 2026-01-02T00:04:05Z: t takes at most 2h0m0s before the clock (message.timestamp.before.max.ms)"},
		{10, nil, now, "no_key: no key, but t is compacted (cleanup.policy) and takes no record without one"},
		{1e6, []byte("k"), now, "too_large: 1000000 bytes, but t takes at most 999488"},
	} {
		text := ""
		if err := gate.Check(test.size, test.key, test.at); err != nil {
			text = err.Error()
		}
		if text != test.want {
			t.Errorf("%d bytes, key %q, %v: %q, want %q", test.size, test.key, test.at, text, test.want)
		}
	}
	anyTime := Limits(nil).Gate("t", time.Now)
	if err := anyTime.Check(1, nil, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)); pipeline.ReasonOf(err) != pipeline.ReasonBadTime {
		t.Errorf("the year 9999, which the client would write as 1816: %v", err)
	}
}

// The client writes the times that a gate without bounds accepts unchanged.
func TestClientWritesEveryTimeThatAGateAccepts(t *testing.T) {
	c := newCluster(t, 1)
	gate := Limits(nil).Gate("in", time.Now)
	var want []int64
	cl := c.client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, ms := range []int64{math.MinInt64, -62_135_596_800_000, -1000, -1, 0, 1, lastMilli - 1, lastMilli, lastMilli + 1, math.MaxInt64} {
		at := time.UnixMilli(ms)
		if gate.Check(1, nil, at) != nil {
			continue
		}
		want = append(want, ms)
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Timestamp: at}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	var got []int64
	if _, err := ReadPartition(t.Context(), c.config(), "in", 0, 0, func(r *pipeline.Record) error {
		got = append(got, r.Time.UnixMilli())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) || len(got) != 4 {
		t.Fatalf("read %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("wrote %d, read %d", want[i], got[i])
		}
	}
}

// A record that the topic takes, and this program does not write, is refused with the reason.
func TestGateSaysWhyItsLimitIsNotTheTopics(t *testing.T) {
	for _, test := range []struct {
		limit int
		want  string
	}{
		{8 << 20, "too_large: 5000000 bytes, but this program writes at most 4193792 to t: the topic's max.message.bytes was raised after this worker had started: restart it, or raise --memory"},
		{4 << 20, "too_large: 5000000 bytes, but t takes at most 4193792"},
	} {
		limits := Limits{"t": Limit{Bytes: test.limit}.clamp(4 << 20)}
		if err := limits.Gate("t", time.Now).Check(5_000_000, []byte("k"), time.Now()); err == nil || err.Error() != test.want {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
}

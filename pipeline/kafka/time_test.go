package kafka

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
)

// The client's timestamp of each time that a gate accepts is that time in milliseconds,
// unless the broker sets it. The others are an error, and if they are written nevertheless,
// they get the nearest possible timestamp.
func TestTimestampsAreCorrectOrRefused(t *testing.T) {
	ofClient := func(at time.Time) int64 { return at.UnixNano() / 1e6 } // as in kgo
	rapid.Check(t, func(t *rapid.T) {
		at := time.UnixMicro(rapid.OneOf(rapid.Int64(), rapid.Int64Range(-1e6, 1e6), rapid.Int64Range(lastMilli*1000-1e6, lastMilli*1000+1e6)).Draw(t, "micros"))
		err, written := Limits(nil).Gate("t", time.Now).Check(1, []byte("k"), at), ofClient(recordTime(at))
		if err := (Limits{"t": {AppendTime: true}}).Gate("t", time.Now).Check(1, []byte("k"), at); err != nil {
			t.Fatalf("%v where the broker sets the time: %v", at, err)
		}
		switch {
		case err == nil && written != at.UnixMilli():
			t.Fatalf("%v is accepted, but written as %d", at, written)
		case err != nil && at.UnixMilli() >= 0 && at.UnixMilli() < lastMilli:
			t.Fatalf("%v: %v", at, err)
		case at.UnixMilli() < 0 && (err == nil || !at.IsZero() && written != 0):
			t.Fatalf("%v: %v, written as %d", at, err, written)
		case at.UnixMilli() > lastMilli && (err == nil || written != lastMilli):
			t.Fatalf("%v: %v, written as %d", at, err, written)
		}
	})
	for text, want := range map[string]string{
		"0001-01-01T00:00:00Z":     "0001-01-01T00:00:00Z is before 1970, which a Kafka record's time cannot be",
		"1969-12-31T23:59:59.999Z": "1969-12-31T23:59:59.999Z is before 1970, which a Kafka record's time cannot be",
		"1970-01-01T00:00:00Z":     "",
		"2262-04-11T23:47:16Z":     "",
		"2263-01-01T00:00:00Z":     "2263-01-01T00:00:00Z is after 2262-04-11T23:47:16.854Z, the last time that a Kafka record can have",
		"2600-12-31T00:00:00Z":     "2600-12-31T00:00:00Z is after 2262-04-11T23:47:16.854Z, the last time that a Kafka record can have",
		"9999-12-31T23:59:59Z":     "9999-12-31T23:59:59Z is after 2262-04-11T23:47:16.854Z, the last time that a Kafka record can have",
	} {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := checkTime(at); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	if err := checkTime(time.UnixMilli(math.MaxInt64)); err == nil || !strings.HasPrefix(err.Error(), "the time 9223372036854775807000 (in microseconds since 1970) is after ") {
		t.Error(err)
	}
}

// The client reads timestamps of other writers modulo 2^64 nanoseconds. Their times are
// correct nevertheless.
func TestTimesOfOtherWritersAreReadAsTheyAre(t *testing.T) {
	ofClient := func(ms int64) time.Time { return time.Unix(0, ms*1e6) } // as in kgo
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.OneOf(rapid.Int64Range(-1<<57, 1<<57-1), rapid.Int64Range(-1e15, 1e15), rapid.Int64Range(lastMilli-10, lastMilli+10), rapid.Int64Range(-10, 10)).Draw(t, "milliseconds")
		if got := readTime(ofClient(ms)).UnixMilli(); got != ms {
			t.Fatalf("%d is read as %d", ms, got)
		}
	})
}

// A broker returns the times that were written.
func TestBrokerReturnsTheTimesWritten(t *testing.T) {
	c := newCluster(t, 1)
	want := map[string]int64{}
	var records []*pipeline.Record
	for name, at := range map[string]time.Time{
		"1969": time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC), "1970": time.UnixMilli(0), "2262": time.UnixMilli(lastMilli),
		"2263": time.Date(2263, 1, 1, 0, 0, 0, 0, time.UTC), "2600": time.Date(2600, 12, 31, 0, 0, 0, 0, time.UTC), "9999": time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
	} {
		want[name] = min(max(at.UnixMilli(), 0), lastMilli)
		records = append(records, &pipeline.Record{Topic: "in", Key: []byte(name), Value: []byte("v"), Time: at})
	}
	if err := WriteOnce(t.Context(), c.config(), records...); err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, err := ReadSettled(t.Context(), c.config(), "in", 0, func(r *pipeline.Record) error {
		n++
		if got := r.Time.UnixMilli(); got != want[string(r.Key)] {
			t.Errorf("%s: the record has time %d, want %d", r.Key, got, want[string(r.Key)])
		}
		return nil
	}); err != nil || n != len(want) {
		t.Fatalf("%d records, %v", n, err)
	}
}

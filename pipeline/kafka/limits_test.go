package kafka

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// setLimit sets the max.message.bytes of a topic.
func setLimit(t *testing.T, c *cluster, topic string, bytes int) {
	t.Helper()
	if err := SetTopicConfig(t.Context(), c.config(), topic, map[string]string{"max.message.bytes": strconv.Itoa(bytes)}); err != nil {
		t.Fatal(err)
	}
}

// padded copies to "out" and appends size(value) incompressible bytes to each value. If
// the record would be larger than the limit of "out", it writes the value alone.
type padded struct {
	copier
	size   func(value string) int
	aborts int

	mu     sync.Mutex // guards limits, which tests read
	limits Limits
}

func (h *padded) SetLimits(l Limits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.limits = l
}

func (h *padded) record() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.limits.MaxRecord("out")
}

func (h *padded) Handle(_ context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	value := slices.Clone(in.Value)
	for n := h.size(string(in.Value)); n > 0; n-- {
		value = append(value, byte(rand.Uint32()))
	}
	if len(in.Key)+len(value) > h.record() {
		value = slices.Clone(in.Value)
	}
	out.Emit(&pipeline.Record{Topic: "out", Partition: pipeline.KeyPartition, Key: in.Key, Value: value, Time: in.Time})
	return nil
}

func (h *padded) EndBatch(committed bool) {
	if !committed {
		h.aborts++
	}
}

// caughtUp reports whether the group has committed all of "in".
func caughtUp(c *cluster) bool {
	for _, p := range c.PartitionInfos("in") {
		if groupOffset(c, "in", p.Partition) < p.HighWatermark {
			return false
		}
	}
	return true
}

// sizes returns the sizes of the values on "out", by number, and checks that each is
// there once. With AtLeastOnce, a record may be there more than once.
func sizes(t *testing.T, c *cluster, guarantee Guarantee, n int) map[string]int {
	t.Helper()
	var numbers []string
	all := map[string]int{}
	for _, v := range committed(t, c, "out", n) {
		if _, ok := all[v[:6]]; ok && guarantee == AtLeastOnce {
			continue
		}
		numbers = append(numbers, v[:6])
		all[v[:6]] = len(v)
	}
	wantEach(t, numbers, n)
	return all
}

func always(n int) func(string) int { return func(string) int { return n } }

func TestBatchesKeepToASmallTopicLimit(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(string(guarantee), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			setLimit(t, c, "out", 20_000)
			inject(t, c, 0, 5000)
			h := &padded{size: always(300)}
			cfg := testConfig(c, h)
			cfg.Guarantee, cfg.Writes = guarantee, []string{"out"}
			_, stop := start(t, cfg)
			sizes(t, c, guarantee, 5000)
			if err := stop(); err != nil {
				t.Error(err)
			}
			if h.aborts > 0 {
				t.Errorf("%d batches were rolled back", h.aborts)
			}
		})
	}
}

func TestALargeRecordIsWrittenToATopicWithALargeLimit(t *testing.T) {
	c := newCluster(t, 2)
	setLimit(t, c, "out", 5<<20)
	inject(t, c, 0, 10)
	h := &padded{size: func(value string) int { return map[string]int{"000003": 4 << 20}[value] }}
	cfg := testConfig(c, h)
	cfg.Writes = []string{"out"}
	start(t, cfg)
	if n := sizes(t, c, ExactlyOnce, 10)["000003"]; n != 4<<20+6 {
		t.Errorf("the large record has %d bytes", n)
	}
}

// The topic limit is lowered while workers run: records below it are written as before,
// and the handler learns the new limit for larger ones.
func TestALimitThatIsLoweredAtRunTimeTakesEffect(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(string(guarantee), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 4)
			var handlers []*padded
			for range 2 {
				handlers = append(handlers, &padded{size: func(value string) int {
					if value == "000050" || value == "003050" {
						return 100_000
					}
					return 300
				}})
			}
			cfg := testConfig(c, nil)
			cfg.NewHandler = func(n int) (pipeline.Handler, error) { return handlers[n], nil }
			cfg.Guarantee, cfg.Sessions, cfg.Writes = guarantee, len(handlers), []string{"out"}
			l, stop := start(t, cfg)
			inject(t, c, 0, 3000)
			if n := sizes(t, c, guarantee, 3000)["000050"]; n != 100_006 {
				t.Errorf("the large record had %d bytes", n)
			}
			setLimit(t, c, "out", 20_000)
			inject(t, c, 3000, 6000)
			waitFor(t, func() bool { return caughtUp(c) && lag(l) == 0 && l.Ready() == nil })
			if n := sizes(t, c, guarantee, 6000)["003050"]; n != 6 {
				t.Errorf("the large record has %d bytes after the limit was lowered", n)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			if handlers[0].aborts+handlers[1].aborts == 0 {
				t.Error("no batch was too large, so the test checked nothing")
			}
		})
	}
}

func TestWithoutDescribeConfigsTheLoopWorksAndNamesTheRemedy(t *testing.T) {
	c := newCluster(t, 2)
	denied := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.DescribeConfigs}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	var log lockedLog
	h := &padded{size: always(300)}
	cfg := testConfig(c, h)
	cfg.Writes, cfg.Logger = []string{"out"}, slog.New(slog.NewTextHandler(&log, nil))
	l, _ := start(t, cfg)
	inject(t, c, 0, 1000)
	sizes(t, c, ExactlyOnce, 1000)
	if n := h.record(); n != 999_488 {
		t.Errorf("the limit for records is %d bytes", n)
	}
	if n := strings.Count(log.String(), limitsUnread); n != 1 {
		t.Errorf("%d warnings in the log:\n%s", n, &log)
	}

	setLimit(t, c, "out", 20_000)
	inject(t, c, 1000, 4000)
	waitFor(t, func() bool {
		err := l.Ready()
		return err != nil && strings.Contains(err.Error(), "MESSAGE_TOO_LARGE") && strings.Contains(err.Error(), "max.message.bytes") && strings.Contains(err.Error(), "allow DescribeConfigs")
	})
	if strings.Contains(log.String(), "starting a new client") {
		t.Errorf("the client was discarded although that does not help:\n%s", &log)
	}
	denied.Remove() // the remedy that the error names
	sizes(t, c, ExactlyOnce, 4000)
	waitFor(t, func() bool { return l.Ready() == nil })
}

// lockedLog is a log that is read while it is written.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestAWriterKeepsToTopicLimits(t *testing.T) {
	c := newCluster(t, 1)
	setLimit(t, c, "in", 20_000)
	setLimit(t, c, "out", 5<<20)
	w, err := NewWriter(c.config())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	limits := w.Limits(t.Context(), "in", "out", "not yet there")
	for topic, want := range map[string]int{"in": 20_000 - 512, "out": 5<<20 - 512, "not yet there": 999_488, "never asked for": 999_488} {
		if n := limits.MaxRecord(topic); n != want {
			t.Errorf("the limit for records of %s is %d bytes, want %d", topic, n, want)
		}
	}
	values := make([]byte, 5<<20)
	for i := range values {
		values[i] = byte(rand.Uint32())
	}
	put := func(topic string, n, size int) {
		for i := range n {
			w.Write(t.Context(), &pipeline.Record{Topic: topic, Partition: pipeline.KeyPartition, Key: fmt.Append(nil, i), Value: values[i : i+size]}, func(err error) {
				if err != nil {
					t.Errorf("%s, record %d of %d bytes: %v", topic, i, size, err)
				}
			})
		}
	}
	put("in", 1000, 300)
	put("in", 10, limits.MaxRecord("in")-1)
	put("out", 1, limits.MaxRecord("out")-1)
	if err := w.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestALimitIsClampedToTheMemoryAndToTheReadableSize(t *testing.T) {
	for _, test := range []struct {
		name                  string
		takes, memory, record int
	}{
		{"the limit of the topic", 2 << 20, 64 << 20, 2<<20 - 512},
		{"no more than a quarter of the memory", 1 << 30, 64 << 20, 16<<20 - 512},
		{"no more than can be decompressed", 1 << 30, 2 << 30, 64<<20 - 512},
		{"not below the head of a batch", 0, 64 << 20, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, 1)
			setLimit(t, c, "out", test.takes)
			inject(t, c, 0, 1)
			h := &padded{size: always(0)}
			cfg := testConfig(c, h)
			cfg.Writes, cfg.Memory = []string{"out"}, test.memory
			start(t, cfg)
			waitFor(t, func() bool { return h.record() == test.record })
		})
	}
}

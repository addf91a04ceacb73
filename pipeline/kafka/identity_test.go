package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"millrace/pipeline"
)

// known returns the topics in and out as they are now.
func known(t *testing.T, c *cluster) map[string]TopicInfo {
	t.Helper()
	all, err := EnsureTopics(t.Context(), c.config(), []TopicSpec{{Name: "in"}, {Name: "out"}}, false)
	if err != nil {
		t.Fatal(err)
	}
	return all.Topics
}

// recreate deletes a topic and creates it again.
func recreate(t *testing.T, c *cluster, topic string, partitions int) {
	t.Helper()
	if err := c.DeleteTopic(topic); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateTopic(topic, int32(partitions), nil); err != nil {
		t.Fatal(err)
	}
}

// runLoop runs a loop until it ends by itself, and returns its error.
func runLoop(t *testing.T, cfg LoopConfig) (ended chan error) {
	t.Helper()
	l, err := NewLoop(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	ended = make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	return ended
}

// A loop ends when its topic was deleted and created again, and the next one reads the
// new topic from its start, whatever the group has committed of the old one.
func TestALoopEndsWhenItsTopicIsCreatedAgainAndTheNextReadsAllOfIt(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, running %v", guarantee, running), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 2)
				inject(t, c, 0, 500)
				cfg := testConfig(c, &copier{})
				cfg.Guarantee, cfg.Known = guarantee, known(t, c)
				ended := make(chan error, 1)
				if running {
					ended = runLoop(t, cfg)
					waitFor(t, func() bool { return caughtUp(c) })
				} else {
					_, stop := start(t, cfg)
					waitFor(t, func() bool { return caughtUp(c) })
					if err := stop(); err != nil {
						t.Fatal(err)
					}
				}
				committedBefore := map[int32]int64{}
				for _, p := range c.PartitionInfos("in") {
					committedBefore[p.Partition] = p.HighWatermark
				}
				recreate(t, c, "in", 2)
				// As a member that commits its position by the topic's name after the deletion.
				adm := kadm.NewClient(c.client(t))
				if running {
					if err := <-ended; !errors.Is(err, ErrRecreated) || !strings.Contains(err.Error(), "topic in: ") {
						t.Fatalf("the loop ended with %v", err)
					}
				}
				var offsets kadm.Offsets
				for p, at := range committedBefore {
					offsets.Add(kadm.Offset{Topic: "in", Partition: p, At: at, LeaderEpoch: -1, Metadata: *cfg.mark("in")})
				}
				if _, err := adm.CommitOffsets(t.Context(), "g", offsets); err != nil {
					t.Fatal(err)
				}
				inject(t, c, 500, 1500)
				cfg.Known = known(t, c)
				l, _ := start(t, cfg)
				waitFor(t, func() bool { return caughtUp(c) && lag(l) == 0 })
				wantEach(t, committed(t, c, "out", 1500), 1500)
			})
		}
	}
}

// More partitions end a loop, and the error says what to do. So it is if they are added
// while no loop runs, but after its handlers were made.
func TestALoopEndsWhenPartitionsAreAdded(t *testing.T) {
	for _, topic := range []string{"in", "out"} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, running %v", topic, running), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 2)
				inject(t, c, 0, 100)
				cfg := testConfig(c, &copier{})
				cfg.Known = known(t, c)
				var ended chan error
				add := func() {
					if _, err := kadm.NewClient(c.client(t)).UpdatePartitions(t.Context(), 3, topic); err != nil {
						t.Fatal(err)
					}
				}
				if running {
					ended = runLoop(t, cfg)
					waitFor(t, func() bool { return caughtUp(c) })
					add()
				} else {
					add()
					ended = runLoop(t, cfg)
				}
				err := <-ended
				if pipeline.ClassOf(err) != pipeline.ClassFatal || errors.Is(err, ErrRecreated) {
					t.Fatalf("the loop ended with %v", err)
				}
				if want := "topic " + topic + " had 2 partitions when this program started and has 3 now"; !strings.Contains(err.Error(), want) {
					t.Errorf("the loop ended with %v, want %s", err, want)
				}
				if !running && len(readAll(t.Context(), t, c, "out")) > 0 {
					t.Error("records were written")
				}
			})
		}
	}
}

// An output topic that was created again ends the loop, too; the next one writes to it.
func TestALoopEndsWhenItsOutputIsCreatedAgain(t *testing.T) {
	c := newCluster(t, 2)
	inject(t, c, 0, 100)
	cfg := testConfig(c, &copier{})
	cfg.Known = known(t, c)
	ended := runLoop(t, cfg)
	waitFor(t, func() bool { return caughtUp(c) })
	recreate(t, c, "out", 2)
	if err := <-ended; !errors.Is(err, ErrRecreated) {
		t.Fatalf("the loop ended with %v", err)
	}
	inject(t, c, 100, 200)
	cfg.Known = known(t, c)
	start(t, cfg)
	if got := committed(t, c, "out", 100); len(got) != 100 {
		t.Errorf("%d records are on the new topic, want 100", len(got))
	}
}

func TestATailEndsWhenItsTopicIsCreatedAgain(t *testing.T) {
	c := newCluster(t, 1)
	inject(t, c, 0, 10)
	tail := NewTail(c.config(), "in")
	ended := make(chan error, 1)
	n := 0
	go func() {
		ended <- tail.Follow(t.Context(), func(*pipeline.Record) error { n++; return nil }, func(error, time.Duration) {})
	}()
	<-tail.Loaded()
	recreate(t, c, "in", 1)
	inject(t, c, 10, 40)
	if err := <-ended; !errors.Is(err, ErrRecreated) || pipeline.ClassOf(err) != pipeline.ClassFatal {
		t.Errorf("the tail ended with %v", err)
	}
	if n != 10 {
		t.Errorf("%d records were read, want 10", n)
	}
}

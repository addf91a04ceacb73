package verify

import "millrace/pipeline/processor/trace"

// judge adds the results of the pass to the report.
func (c *comparison) judge() {
	strays := map[uint64][]stray{}
	for _, s := range c.strays {
		strays[s.group] = append(strays[s.group], s)
	}
	for _, group := range c.groups() {
		at := c.index[group]
		c.judgeGroup(c.expected[at[0]:at[1]], strays[group])
		delete(strays, group)
	}
	for _, s := range c.strays { // in the order of the output, unlike the map
		if _, left := strays[s.group]; left && !c.lostIn && !c.guessed {
			c.extra(s)
		}
	}
}

// groups returns the groups of expected records, in order.
func (c *comparison) groups() (out []uint64) {
	for i := range c.expected {
		if i == 0 || c.expected[i].group != c.expected[i-1].group {
			out = append(out, c.expected[i].group)
		}
	}
	return out
}

// judgeGroup judges the expected records of a group and the strays of the same group.
func (c *comparison) judgeGroup(expected []expectedRecord, strays []stray) {
	missing, firstFound := c.judgeExpected(expected)
	var unmatched []stray
	for i := range strays {
		s := &strays[i]
		first, found := firstFound[s.at.Partition]
		switch {
		case s.duplicateOf >= 0:
			c.report.Duplicated++
			c.show(disagreement{Kind: "twice", Topic: s.at.Topic, Key: s.key, wanted: &c.expected[s.duplicateOf], Found: &s.at})
		case c.guessed: // other answers of the service, another record
		case c.lostIn && (!found || s.at.Offset < first): // its event may be among the lost ones
		default:
			unmatched = append(unmatched, *s)
		}
	}
	c.pair(expected, missing, unmatched)
}

// judgeExpected counts the found records of a group and reports those out of order.
// It returns the indexes of the missing ones, and the first offset of a found one by
// output partition.
func (c *comparison) judgeExpected(expected []expectedRecord) (missing []int, firstFound map[int32]int64) {
	r := &c.report
	firstFound = map[int32]int64{}
	last := map[[2]int32]int64{} // place of the last found record, by source and output partition
	started := !c.lostOut        // after lost output, the group starts at its first found record
	for i := range expected {
		e := &expected[i]
		if started = started || e.found > 0; !started {
			continue
		}
		if e.source == 0 && !e.optional {
			r.Expected++
		}
		if e.found == 0 {
			if !e.optional {
				missing = append(missing, i)
			}
			continue
		}
		if first, ok := firstFound[e.foundIn]; !ok || e.found-1 < first {
			firstFound[e.foundIn] = e.found - 1
		}
		lane := [2]int32{e.partition, e.foundIn}
		if e.found < last[lane] && e.source == 0 {
			r.OutOfOrder++
			c.show(disagreement{Kind: "out of order", wanted: e, Found: &trace.Place{Partition: e.foundIn, Offset: e.found - 1}})
		}
		last[lane] = max(last[lane], e.found)
		if e.source == 0 && !e.optional {
			r.Matched++
			c.countOutcome(e)
		}
	}
	return missing, firstFound
}

// countOutcome counts the outcome of an event once, at its first record.
func (c *comparison) countOutcome(e *expectedRecord) {
	switch {
	case e.dead:
		c.report.DeadLetters++
	case e.first:
		c.report.Out++
	}
}

// pair reports each missing record of a group together with an unmatched one as
// different, and the rest of the longer list as missing or extra.
func (c *comparison) pair(expected []expectedRecord, missing []int, unmatched []stray) {
	for i, n := range missing {
		d := disagreement{Kind: "missing", wanted: &expected[n]}
		if i < len(unmatched) {
			d.Kind, d.Topic, d.Key, d.Found = "different", unmatched[i].at.Topic, unmatched[i].key, &unmatched[i].at
			c.report.Different++
			c.countOutcome(&expected[n]) // the event has an outcome, though a wrong one
		} else {
			c.report.Missing++
		}
		c.show(d)
	}
	for _, s := range unmatched[min(len(missing), len(unmatched)):] {
		c.extra(s)
	}
}

// extra reports a record that matches no event.
func (c *comparison) extra(s stray) {
	c.report.Extra++
	c.show(disagreement{Kind: "too many", Topic: s.at.Topic, Key: s.key, Found: &s.at})
}

// show adds a disagreement to the samples of the report, if there is room.
func (c *comparison) show(d disagreement) {
	if len(c.report.Samples) >= c.most {
		return
	}
	if d.wanted != nil {
		e := *d.wanted // the next pass reuses the slice that wanted points into
		d.wanted, d.In = &e, &trace.Place{Topic: c.sources[e.source].From.Name, Partition: e.partition, Offset: e.offset}
	}
	c.report.Samples = append(c.report.Samples, d)
}

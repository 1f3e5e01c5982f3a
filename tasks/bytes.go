package tasks

import "meshnode/protocol"

// Bytes cost time: a task whose program or input is a blob begins at a peer when that is there. What is not known costs
// nothing: a first transfer is how it becomes known.

const (
	// measuredFrom is the least transfer that says something of bandwidth, rather than of latency and of buffers on the way.
	measuredFrom = 1 << 20
	// slowest is the time for 1 MiB at which a connection counts as no slower, and mostBytes what counts of a blob: with
	// them products stay in range.
	slowest   = 60 * second
	mostBytes = 1 << 36
	// farBlind is from when on bytes are far for a job whose tasks nobody has timed. They are sent meanwhile.
	farBlind = second
)

// transferred learns how fast bytes go to and from a peer.
func (s *Scheduler) transferred(ev Transferred) {
	if p := s.peers[ev.Peer]; p != nil && !p.self && ev.Bytes >= measuredFrom {
		kib := int64(min(ev.Bytes, mostBytes) >> 10)
		p.perMiB.add(min(max(ev.Took, 1), slowest*1024)/kib*1024 + 1)
	}
}

// moving is how long bytes need to p, ns; 0: not known.
func (p *peer) moving(bytes uint64) int64 {
	if p.perMiB.n == 0 {
		return 0
	}
	return int64((min(bytes, mostBytes)+1023)>>10) * min(p.perMiB.ns, slowest) >> 10
}

// countBlobs enters what a new task reads into the books of its job: a blob that one task reads counts with that, one that
// more of them read goes once to each node, like the program.
func (j *job) countBlobs(in *Input) {
	if in.Blob != nil {
		j.blobBytes += min(in.Blob.GetSize(), blobBound)
	}
	for _, b := range in.Blobs {
		id := protocol.BlobID(b.Id)
		if j.readers == nil {
			j.readers = map[protocol.BlobID]bool{}
		}
		switch more, known := j.readers[id]; {
		case !known:
			j.readers[id] = false
			j.blobBytes += min(b.Size, blobBound)
		case !more:
			j.readers[id] = true
			j.blobBytes -= min(b.Size, blobBound)
		}
	}
}

// has notes that what a task reads is at the worker of sh, or on its way there.
func (sh *share) has(j *job, in *Input) {
	for _, b := range in.Blobs {
		if id := protocol.BlobID(b.Id); j.readers[id] {
			if sh.blobs == nil {
				sh.blobs = map[protocol.BlobID]bool{}
			}
			sh.blobs[id] = true
		}
	}
}

// unshared is how many bytes of what the next task of j reads with others are not at p.
func (j *job) unshared(p *peer) uint64 {
	if len(j.readers) == 0 || len(j.inputs.ahead) == 0 {
		return 0
	}
	sh, n := j.byWorker[p.id], uint64(0)
	for _, b := range j.inputs.ahead[0].Blobs {
		if id := protocol.BlobID(b.Id); j.readers[id] && (sh == nil || !sh.blobs[id]) {
			n += min(b.Size, blobBound)
		}
	}
	return n
}

// inputMoving is how long the input of a task of j needs to p, ns: that of the mean task.
func (s *Scheduler) inputMoving(p *peer, j *job) int64 {
	if p.self || j.blobBytes == 0 {
		return 0
	}
	return p.moving(j.blobBytes / uint64(max(1, j.tasks.n)))
}

// missing is how long it takes until a task of j could begin at p, for the bytes alone, ns: its program, of which a part is there if p
// was told of the job before, and its input.
func (s *Scheduler) missing(p *peer, j *job) int64 {
	if p.self || p.perMiB.n == 0 {
		return 0
	}
	m := s.inputMoving(p, j) + p.moving(j.unshared(p))
	if sh := j.byWorker[p.id]; sh == nil || sh.tasks == 0 {
		program := p.moving(j.spec.Program.GetCode().GetSize())
		if at, told := p.informed[j.id]; told {
			program -= s.now - at
		}
		m += max(0, program)
	}
	return m
}

// tooFar says that those that work on j, or could at once, would have all that is left of it before its bytes are at p.
func (s *Scheduler) tooFar(p *peer, j *job) bool {
	m := s.missing(p, j)
	if m <= recallLead || j.run.ns == 0 && m <= farBlind {
		return false
	}
	others := int64(0) // tasks that they would do meanwhile
	for _, q := range s.line {
		if q == p || !s.available(q) || !s.canRun(q, j) {
			continue
		}
		sh := j.byWorker[q.id]
		slots := s.free(q)
		if sh != nil {
			slots = max(slots, min(sh.live, q.slotsHere(s)))
		}
		if ahead := m - s.missing(q, j); slots > 0 && ahead > 0 {
			if j.run.ns == 0 {
				return true
			}
			others += int64(slots) * (ahead / max(1, s.runOn(q, j)+s.inputMoving(q, j)))
		}
	}
	return others >= int64(s.remaining(j))
}

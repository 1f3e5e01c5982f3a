package control

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"meshnode/node"
	"meshnode/node/doctor"
	"meshnode/protocol"
)

// Node is what the server needs of a node; *node.Node satisfies it, and says there what each method does.
type Node interface {
	Status(ctx context.Context) (node.Status, error)
	Peers(ctx context.Context) ([]node.Peer, error)
	OpenJob(ctx context.Context, spec node.JobSpec) error
	AddTasks(ctx context.Context, job protocol.JobID, first uint32, ins []node.TaskInput) error
	CloseJob(ctx context.Context, job protocol.JobID, count uint32) error
	Watch(ctx context.Context, job protocol.JobID, cursor uint32, most uint64, deliver func([]node.TaskResult) error) (node.Job, error)
	Jobs(ctx context.Context) ([]node.Job, error)
	Job(ctx context.Context, job protocol.JobID) (node.Job, error)
	Inputs(ctx context.Context, job protocol.JobID, first uint32, n int) ([][]byte, error)
	Result(ctx context.Context, job protocol.JobID, index uint32) (node.TaskResult, bool, error)
	Rerun(ctx context.Context, of protocol.JobID, r node.Rerun) (node.Job, error)
	Cancel(ctx context.Context, job protocol.JobID, index *uint32) error
	SetGroup(ctx context.Context, group protocol.JobID, limit int) error
	PutBlob(ctx context.Context, r io.Reader, sum []byte) (node.Blob, error)
	OpenBlob(ctx context.Context, name string) (io.ReadSeekCloser, node.Blob, error)
	Blobs(ctx context.Context) (node.BlobStore, error)
	GCBlobs(ctx context.Context, to int64) (freed int64, err error)
	DeleteBlob(ctx context.Context, name string) error
	Invite(ctx context.Context, o node.InviteOptions) (ticket string, err error)
	Join(ctx context.Context, ticket string) (mesh string, err error)
	InviteCode(ctx context.Context, o node.InviteOptions) (code string, err error)
	Code(ctx context.Context, code string, withdraw bool) (node.Code, error)
	JoinCode(ctx context.Context, code, at string) (node.Joined, error)
	Leave(ctx context.Context, force bool) (node.Left, error)
	Recover(ctx context.Context, code string) (mesh string, err error)
	Revoke(ctx context.Context, id, reason string, withIssued bool) (node.Revoked, error)
	Rename(ctx context.Context, id, name string) error
	Forget(ctx context.Context, id string) error
	Allow(ctx context.Context, id string, o node.PeerPolicy) error
	Deny(ctx context.Context, id string, o node.PeerPolicy) error
	ConnectBySecret(ctx context.Context, addr, secret string) (node.Connected, error)
	Connect(ctx context.Context, addr string) (node.Connected, error)
	SetSlots(ctx context.Context, n int) error
	Pause(ctx context.Context, d time.Duration) error
	Resume(ctx context.Context) error
	Drain(ctx context.Context) error
	WhyJob(ctx context.Context, job protocol.JobID) (node.Why, error)
	WhyTask(ctx context.Context, job protocol.JobID, index uint32) (node.Why, error)
	WhyPeer(ctx context.Context, id string) (node.Why, error)
	Ping(ctx context.Context, id string) (node.Ping, error)
	Doctor(ctx context.Context) (doctor.Report, error)
	Shutdown()
}

// Limits of the server.
const (
	maxStreams = 256      // upgraded connections at once
	maxWatches = 1024     // of one connection
	maxJSON    = 64 << 10 // body of a request

	// headerTimeout ends connections that say nothing, so that they do not hold descriptors for ever.
	headerTimeout = 10 * time.Second
	// drainTimeout is how long answers may take once the server stops.
	drainTimeout = time.Second
)

// Server serves one node on one Listener.
type Server struct {
	node Node
	ln   *Listener
	log  *slog.Logger
	http http.Server

	ready   chan struct{}
	streams sync.WaitGroup
	slots   chan struct{} // one for each upgraded connection
	ctx     context.Context
}

// New returns a server that Run starts, once. The listener stays the caller's to close.
func New(n Node, ln *Listener, log *slog.Logger) *Server {
	s := &Server{node: n, ln: ln, log: log, ready: make(chan struct{}), slots: make(chan struct{}, maxStreams)}
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			if err != nil {
				s.writeError(w, r, err)
				return
			}
			writeJSON(w, http.StatusOK, v)
		})
	}
	handle("GET /v1/status", func(r *http.Request) (any, error) { return s.node.Status(r.Context()) })
	handle("GET /v1/peers", func(r *http.Request) (any, error) { return s.node.Peers(r.Context()) })
	handle("GET /v1/jobs", func(r *http.Request) (any, error) {
		jobs, err := s.node.Jobs(r.Context())
		if jobs == nil {
			jobs = []node.Job{}
		}
		return jobs, err
	})
	handle("GET /v1/jobs/{job}", s.getJob)
	handle("GET /v1/jobs/{job}/tasks/{index}", s.getTask)
	handle("GET /v1/jobs/{job}/inputs", s.getInputs)
	handle("POST /v1/jobs/{job}/cancel", s.postCancel)
	handle("POST /v1/jobs/{job}/rerun", s.postRerun)
	handle("POST /v1/invite", s.postInvite)
	handle("POST /v1/join", s.postJoin)
	handle("POST /v1/code", s.postCode)
	handle("POST /v1/connect", s.postConnect)
	handle("POST /v1/leave", s.postLeave)
	handle("POST /v1/recover", s.postRecover)
	handle("POST /v1/peers/revoke", s.postRevoke)
	handle("POST /v1/peers/rename", s.postRename)
	handle("POST /v1/peers/forget", s.postForget)
	handle("POST /v1/allow", s.postPolicy(true))
	handle("POST /v1/deny", s.postPolicy(false))
	handle("POST /v1/slots", s.postSlots)
	handle("POST /v1/pause", s.postPause)
	handle("POST /v1/resume", func(r *http.Request) (any, error) { return empty{}, s.node.Resume(r.Context()) })
	handle("POST /v1/drain", func(r *http.Request) (any, error) { return empty{}, s.node.Drain(r.Context()) })
	handle("GET /v1/why", s.getWhy)
	handle("POST /v1/ping", s.postPing)
	handle("GET /v1/doctor", func(r *http.Request) (any, error) { return s.node.Doctor(r.Context()) })
	handle("POST /v1/shutdown", func(r *http.Request) (any, error) { s.node.Shutdown(); return empty{}, nil })
	handle("PUT /v1/blobs", s.putBlob)
	handle("GET /v1/blobs", func(r *http.Request) (any, error) { return s.node.Blobs(r.Context()) })
	handle("POST /v1/blobs/gc", s.gcBlobs)
	handle("DELETE /v1/blobs/{blob}", func(r *http.Request) (any, error) {
		return empty{}, s.node.DeleteBlob(r.Context(), r.PathValue("blob"))
	})
	mux.HandleFunc("GET /v1/blobs/{blob}", s.getBlob) // and HEAD
	mux.HandleFunc("POST /v1/stream", s.upgrade)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.writeError(w, r, &node.Error{Code: "no_such_request", Message: "the node does not know " + r.Method + " " + r.URL.Path,
			Fix: "use a meshnode of the same version on both sides"})
	})
	s.http = http.Server{
		Handler:           s.guard(mux),
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
	}
	return s
}

// Run writes control.json and serves until ctx is done; then it lets answers under way end, for a second,
// and cuts the streams. When it returns, all that it started has ended. The error is nil after ctx.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Requests outlive ctx by drainTimeout: the answer to a shutdown is one of them.
	requests, cancelRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelRequests()
	s.ctx = requests
	if err := s.ln.publish(); err != nil {
		return err
	}
	close(s.ready)
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.ln.Listener) }()
	var err error
	select {
	case <-ctx.Done():
		drain, cancelDrain := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		// Shutdown does not know of streams. They are cut at once: their clients keep what is unanswered.
		cancelRequests()
		if s.http.Shutdown(drain) != nil {
			s.http.Close()
		}
		cancelDrain()
		<-served
	case err = <-served:
		s.http.Close()
		cancelRequests()
	}
	s.streams.Wait()
	return err
}

// Ready is closed when clients can find the node.
func (s *Server) Ready() <-chan struct{} { return s.ready }

type empty struct{}

// guard lets in who may: the Unix socket's mode is enough there; TCP needs the token. Browsers are kept out
// by Origin and Host, also from an address that a name was rebound to.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refused := ""
		switch {
		case r.Header.Get("Origin") != "":
			refused = "requests from web pages are not served"
		case s.ln.info.Address != "" && r.Host != s.ln.info.Address:
			refused = "wrong Host"
		case s.ln.info.Token != "" && !constantTimeEqual(r.Header.Get("Authorization"), "Bearer "+s.ln.info.Token):
			refused = "wrong token"
		}
		if refused != "" {
			s.log.Warn("control request refused", "method", r.Method, "path", r.URL.Path, "reason", refused)
			writeJSON(w, http.StatusForbidden, errorBody{&node.Error{Code: node.CodeRefused, Message: refused, Fix: "read address and token from control.json in the data directory"}})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) getJob(r *http.Request) (any, error) {
	id, err := s.resolve(r)
	if err != nil {
		return nil, err
	}
	if r.URL.Query().Get("wait") != "" {
		return s.watch(r.Context(), id, 0, 0, func([]node.TaskResult) error { return nil })
	}
	return s.node.Job(r.Context(), id)
}

// getWhy answers about JOB, JOB/TASK or PEER: a job as in resolve, a peer by its name or id.
func (s *Server) getWhy(r *http.Request) (any, error) {
	subject := r.URL.Query().Get("subject")
	if job, task, ok := strings.Cut(subject, "/"); ok {
		index, err := parseIndex(task)
		if err != nil {
			return nil, err
		}
		id, err := s.resolveName(r.Context(), job)
		if err != nil {
			return nil, err
		}
		j, err := s.node.Job(r.Context(), id)
		if err == nil && index >= j.Tasks {
			return nil, noTask(id, index, j)
		}
		return s.node.WhyTask(r.Context(), id, index)
	}
	peers, err := s.node.Peers(r.Context())
	if err != nil {
		return nil, err
	}
	found := FindPeers(peers, subject)
	id, err := s.resolveName(r.Context(), subject)
	switch {
	case err == nil && len(found) > 0:
		return nil, &node.Error{Code: node.CodeBadRequest, Message: subject + " is a job and a peer", Fix: "give more of the job's id, or the peer's id"}
	case err == nil:
		return s.node.WhyJob(r.Context(), id)
	case len(found) > 1:
		return nil, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("%d peers are called %s", len(found), subject), Fix: "give more of the id: meshnode peers -o wide"}
	case len(found) == 1:
		return s.node.WhyPeer(r.Context(), found[0].ID)
	}
	if e := (*node.Error)(nil); errors.As(err, &e) && (subject == "@last" || strings.Contains(e.Message, "ambiguous")) {
		return nil, err
	}
	if w, err := s.node.WhyPeer(r.Context(), subject); err == nil { // one that is no member any more
		return w, nil
	}
	return nil, &node.Error{Code: node.CodeNoJob, Message: "no job and no peer " + strconv.Quote(subject) + " here", Fix: "see meshnode jobs -a and meshnode peers; a job is known at the node where it was submitted"}
}

// minPeer is how many characters of an id name a peer, at least.
const minPeer = 4

// FindPeers are the peers that a name may mean: those that have it, else those whose id begins or ends so.
func FindPeers(peers []node.Peer, name string) []node.Peer {
	var found []node.Peer
	for _, p := range peers {
		if p.Name == name || p.ID == name {
			found = append(found, p)
		}
	}
	if len(found) > 0 || len(name) < minPeer {
		return found
	}
	for _, p := range peers {
		if strings.HasPrefix(p.ID, name) || strings.HasSuffix(p.ID, name) {
			found = append(found, p)
		}
	}
	return found
}

// resolve finds the job that a request's path names: an id, the first digits of one, or @last.
func (s *Server) resolve(r *http.Request) (protocol.JobID, error) {
	return s.resolveName(r.Context(), r.PathValue("job"))
}

func (s *Server) resolveName(ctx context.Context, name string) (protocol.JobID, error) {
	if id, err := protocol.ParseJobID(name); err == nil {
		return id, nil
	}
	if name != "@last" {
		if err := parsePrefix(name); err != nil {
			return protocol.JobID{}, badRequest(err)
		}
	}
	jobs, err := s.node.Jobs(ctx)
	if err != nil {
		return protocol.JobID{}, err
	}
	if name == "@last" {
		if len(jobs) == 0 {
			return protocol.JobID{}, &node.Error{Code: node.CodeNoJob, Message: "no job was submitted here yet", Fix: "submit one: meshnode submit PROGRAM ::: INPUT..."}
		}
		return protocol.ParseJobID(jobs[0].ID)
	}
	var found []string
	for _, j := range jobs {
		if strings.HasPrefix(j.ID, strings.ToLower(name)) {
			found = append(found, j.ID)
		}
	}
	switch len(found) {
	case 0:
		return protocol.JobID{}, &node.Error{Code: node.CodeNoJob, Message: "no job " + name + " here", Fix: "see meshnode jobs -a; a job is known at the node where it was submitted"}
	case 1:
		return protocol.ParseJobID(found[0])
	}
	slices.Sort(found)
	shown := found[:min(len(found), 5)]
	return protocol.JobID{}, &node.Error{Code: node.CodeBadRequest, Message: "job id " + name + " is ambiguous: " + strings.Join(shown, ", "), Fix: "give more digits"}
}

func (s *Server) getTask(r *http.Request) (any, error) {
	id, err := s.resolve(r)
	if err != nil {
		return nil, err
	}
	index, err := parseIndex(r.PathValue("index"))
	if err != nil {
		return nil, err
	}
	res, ok, err := s.node.Result(r.Context(), id, index)
	if err != nil {
		return nil, err
	}
	if !ok {
		j, err := s.node.Job(r.Context(), id)
		if err != nil {
			return nil, err
		}
		if index >= j.Tasks {
			return nil, noTask(id, index, j)
		}
		if ended(j) { // tasks that end with their job have no result of their own
			return nil, &node.Error{Code: "cancelled", Message: "task " + strconv.Itoa(int(index)) + " was cancelled with job " + id.Short() + ", and has no result", Fix: "run it again: meshnode rerun --failed " + id.Short()}
		}
		return nil, &node.Error{Code: "not_ended", Message: "task " + strconv.Itoa(int(index)) + " of job " + id.Short() + " has not ended", Fix: "wait for it: meshnode wait " + id.Short()}
	}
	return toJSON(res), nil
}

func noTask(id protocol.JobID, index uint32, j node.Job) error {
	return &node.Error{Code: node.CodeNoTask, Message: "job " + id.Short() + " has no task " + strconv.Itoa(int(index)) + ": it has " + strconv.Itoa(int(j.Tasks)), Fix: "tasks count from 0"}
}

func parseIndex(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n >= protocol.MaxTasks {
		return 0, &node.Error{Code: node.CodeBadRequest, Message: "no task has the number " + strconv.Quote(s), Fix: "tasks count from 0: JOB/TASK"}
	}
	return uint32(n), nil
}

// maxInputs bounds what one request for inputs brings: inputs are up to MaxInput each.
const maxInputs = 1000

func (s *Server) getInputs(r *http.Request) (any, error) {
	id, err := s.resolve(r)
	if err != nil {
		return nil, err
	}
	first, err := parseIndex(r.URL.Query().Get("first"))
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(r.URL.Query().Get("n"))
	if err != nil || n < 1 || n > maxInputs {
		return nil, &node.Error{Code: node.CodeBadRequest, Message: "n must be 1 to " + strconv.Itoa(maxInputs)}
	}
	in, err := s.node.Inputs(r.Context(), id, first, n)
	if in == nil {
		in = [][]byte{}
	}
	return in, err
}

func (s *Server) postCancel(r *http.Request) (any, error) {
	id, err := s.resolve(r)
	if err != nil {
		return nil, err
	}
	var task *uint32
	if t := r.URL.Query().Get("task"); t != "" {
		i, err := parseIndex(t)
		if err != nil {
			return nil, err
		}
		task = &i
	}
	if err := s.node.Cancel(r.Context(), id, task); err != nil {
		return nil, err
	}
	j, err := s.node.Job(r.Context(), id)
	if err == nil && task != nil && *task >= j.Tasks {
		return nil, noTask(id, *task, j)
	}
	return j, err
}

// rerunBody is the JSON of POST /v1/jobs/{job}/rerun.
type rerunBody struct {
	Job      string `json:"job"` // the new one
	Failed   bool   `json:"failed"`
	Detached bool   `json:"detached"`
}

func (s *Server) postRerun(r *http.Request) (any, error) {
	of, err := s.resolve(r)
	if err != nil {
		return nil, err
	}
	var b rerunBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	id, err := protocol.ParseJobID(b.Job)
	if err != nil {
		return nil, badRequest(err)
	}
	return s.node.Rerun(r.Context(), of, node.Rerun{ID: id, Failed: b.Failed, Detached: b.Detached})
}

// inviteBody is the JSON of POST /v1/invite.
type inviteBody struct {
	Mine      bool     `json:"mine"`
	Guest     bool     `json:"guest"`
	ExpiresMS int64    `json:"expires_ms"`
	Uses      int      `json:"uses"`
	Runtimes  []string `json:"runtimes"`
	Code      bool     `json:"code,omitempty"` // a short code, and no ticket
}

type inviteAnswer struct {
	Ticket string `json:"ticket,omitempty"`
	Code   string `json:"code,omitempty"`
}

// codeBody is the JSON of POST /v1/code.
type codeBody struct {
	Code     string `json:"code"`
	Withdraw bool   `json:"withdraw,omitempty"`
}

func (s *Server) postCode(r *http.Request) (any, error) {
	var b codeBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	return s.node.Code(r.Context(), b.Code, b.Withdraw)
}

func (s *Server) postInvite(r *http.Request) (any, error) {
	var b inviteBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	if b.ExpiresMS < 0 || b.ExpiresMS > maxTimeout/1000 || b.Uses < 0 {
		return nil, &node.Error{Code: node.CodeBadRequest, Message: "expires and uses must not be negative"}
	}
	o := node.InviteOptions{Mine: b.Mine, Guest: b.Guest, Expires: time.Duration(b.ExpiresMS) * time.Millisecond, Uses: b.Uses, Runtimes: b.Runtimes}
	if b.Code {
		c, err := s.node.InviteCode(r.Context(), o)
		return inviteAnswer{Code: c}, err
	}
	t, err := s.node.Invite(r.Context(), o)
	return inviteAnswer{Ticket: t}, err
}

type joinBody struct {
	Ticket string `json:"ticket"`       // or a short code
	At     string `json:"at,omitempty"` // of a code: where to ask, in place of the local network
}

type connectBody struct {
	Addr   string `json:"addr"`
	Secret string `json:"secret,omitempty"` // who is at the address need not be a member yet, if it knows this
}

// postConnect connects a member by its name, as people call it, or by an address.
func (s *Server) postConnect(r *http.Request) (any, error) {
	var b connectBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	if b.Secret != "" {
		return s.node.ConnectBySecret(r.Context(), b.Addr, b.Secret)
	}
	peers, err := s.node.Peers(r.Context())
	if err != nil {
		return nil, err
	}
	switch found := FindPeers(peers, b.Addr); {
	case len(found) > 1:
		return nil, &node.Error{Code: node.CodeRefused, Message: fmt.Sprintf("%d members are called %q", len(found), b.Addr), Fix: "give the id of one: meshnode peers -o wide"}
	case len(found) == 1 && (found[0].State == "connected" || found[0].State == "suspect"):
		return node.Connected{Peer: found[0].ID, Name: found[0].Name}, nil
	case len(found) == 1:
		c, err := s.node.Connect(r.Context(), found[0].ID)
		if e := (*node.Error)(nil); errors.As(err, &e) { // in the words that were used
			told := *e
			told.Message = strings.ReplaceAll(told.Message, found[0].ID, b.Addr)
			return nil, &told
		}
		return c, err
	}
	return s.node.Connect(r.Context(), b.Addr)
}

// postPing looks at a member, by its name or id.
func (s *Server) postPing(r *http.Request) (any, error) {
	var b peerBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	p, err := s.onePeer(r, b.Peer)
	if err != nil {
		return nil, err
	}
	return s.node.Ping(r.Context(), p.ID)
}

func (s *Server) postJoin(r *http.Request) (any, error) {
	var b joinBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	if node.IsCode(b.Ticket) {
		return s.node.JoinCode(r.Context(), b.Ticket, b.At)
	}
	mesh, err := s.node.Join(r.Context(), b.Ticket)
	return node.Joined{Mesh: mesh}, err
}

type slotsBody struct {
	Slots *int `json:"slots"`
}

// MaxSlots bounds the slots of a node: each may hold a worker process.
const MaxSlots = 4096

func (s *Server) postSlots(r *http.Request) (any, error) {
	var b slotsBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	if b.Slots == nil || *b.Slots < 0 || *b.Slots > MaxSlots {
		return nil, &node.Error{Code: node.CodeBadRequest, Message: "slots must be 0 to " + strconv.Itoa(MaxSlots)}
	}
	return empty{}, s.node.SetSlots(r.Context(), *b.Slots)
}

type pauseBody struct {
	ForMS int64 `json:"for_ms"` // 0: until resume
}

func (s *Server) postPause(r *http.Request) (any, error) {
	var b pauseBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	if b.ForMS < 0 || b.ForMS > maxTimeout/1000 {
		return nil, &node.Error{Code: node.CodeBadRequest, Message: "the time of a pause must not be negative"}
	}
	return empty{}, s.node.Pause(r.Context(), time.Duration(b.ForMS)*time.Millisecond)
}

type blobAnswer struct {
	ID   string `json:"id"`
	Size int64  `json:"size"`
}

// Headers of requests for blobs.
const (
	headerSum  = "Meshnode-Sha256"
	headerBlob = "Meshnode-Blob"
)

func (s *Server) putBlob(r *http.Request) (any, error) {
	var sum []byte
	if text := r.Header.Get(headerSum); text != "" {
		var err error
		if sum, err = hex.DecodeString(text); err != nil || len(sum) != 32 {
			return nil, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("%s: %.80q is no hash: want 64 hexadecimal digits", headerSum, text)}
		}
	}
	b, err := s.node.PutBlob(r.Context(), http.MaxBytesReader(nil, r.Body, MaxBlob), sum)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("it is larger than %d GiB", MaxBlob>>30), Fix: "put it in parts"}
	}
	return blobAnswer{b.ID, b.Size}, err
}

// getBlob sends a blob; of HEAD only what is said of it.
func (s *Server) getBlob(w http.ResponseWriter, r *http.Request) {
	f, b, err := s.node.OpenBlob(r.Context(), r.PathValue("blob"))
	if err != nil {
		s.writeError(w, r, err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", strconv.Quote(b.ID))
	w.Header().Set(headerBlob, b.ID)
	http.ServeContent(w, r, "", time.Time{}, f)
}

type gcBody struct {
	To int64 `json:"to"`
}

type gcAnswer struct {
	Freed    int64 `json:"freed"`
	Occupied int64 `json:"occupied"`
}

func (s *Server) gcBlobs(r *http.Request) (any, error) {
	var b gcBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	if b.To < 0 {
		return nil, &node.Error{Code: node.CodeBadRequest, Message: "to must not be negative"}
	}
	freed, err := s.node.GCBlobs(r.Context(), b.To)
	if err != nil {
		return nil, err
	}
	st, err := s.node.Blobs(r.Context())
	return gcAnswer{freed, st.Occupied}, err
}

func badRequest(err error) error {
	return &node.Error{Code: node.CodeBadRequest, Message: err.Error()}
}

func readJSON(r *http.Request, v any) error {
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxJSON))
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return &node.Error{Code: node.CodeBadRequest, Message: "read the request: " + err.Error()}
	}
	return nil
}

// errorBody is the JSON of every error.
type errorBody struct {
	Error *node.Error `json:"error"`
}

// asError is err for a person; what is not meant for one gets the code "internal".
func asError(err error) *node.Error {
	if e := (*node.Error)(nil); errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &node.Error{Code: node.CodeStopping, Message: "the node is stopping", Fix: "try again when it runs"}
	}
	return &node.Error{Code: "internal", Message: err.Error(), Fix: "see the node's log"}
}

func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	e := asError(err)
	status := map[string]int{
		node.CodeNoBlob: http.StatusNotFound,
		node.CodeNoJob:  http.StatusNotFound, node.CodeNoPeer: http.StatusNotFound, node.CodeNoTask: http.StatusNotFound, "no_such_request": http.StatusNotFound,
		node.CodeBadRequest: http.StatusBadRequest, node.CodeBadProgram: http.StatusUnprocessableEntity,
		node.CodeRefused: http.StatusConflict, "not_ended": http.StatusConflict, "cancelled": http.StatusConflict,
		node.CodeStopping: http.StatusServiceUnavailable, node.CodeUnavailable: http.StatusServiceUnavailable,
	}[e.Code]
	if status == 0 {
		status = http.StatusInternalServerError
		s.log.Error("control request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	writeJSON(w, status, errorBody{e})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n')) // an error here means that the client is gone
}

// streamProtocol is what POST /v1/stream upgrades to.
const streamProtocol = "meshnode/1"

func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), streamProtocol) {
		w.Header().Set("Upgrade", streamProtocol)
		writeJSON(w, http.StatusUpgradeRequired, errorBody{&node.Error{Code: node.CodeBadRequest, Message: "streams need Upgrade: " + streamProtocol}})
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.writeError(w, r, &node.Error{Code: node.CodeUnavailable, Message: strconv.Itoa(maxStreams) + " clients are connected already", Fix: "end some of them"})
		return
	}
	s.streams.Add(1)
	defer s.streams.Done()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.writeError(w, r, err)
		return
	}
	defer conn.Close()
	// A hijacked connection is no more bound to the request's context: the server's cuts it.
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+streamProtocol+"\r\n\r\n"); err != nil {
		return
	}
	st := &stream{server: s, ctx: ctx, out: newFrameWriter(conn)}
	// Its own, larger buffer: small frames then cost no call each.
	err = st.serve(bufio.NewReaderSize(io.MultiReader(bufferedIn(rw.Reader), conn), 64<<10))
	if errors.Is(err, protocol.ErrProtocol) {
		conn.SetWriteDeadline(time.Now().Add(drainTimeout))
		st.answer(0, badRequest(err)) // so that the client's author learns why; we close in any case
	}
	cancel()
	conn.Close()
	st.watches.Wait()
	if errors.Is(err, protocol.ErrProtocol) {
		s.log.Warn("control stream closed", "err", err)
	} else if !errors.Is(err, io.EOF) {
		s.log.Debug("control stream ended", "err", err)
	}
}

// bufferedIn is what an HTTP server had read ahead.
func bufferedIn(r *bufio.Reader) io.Reader {
	b, _ := r.Peek(r.Buffered())
	return strings.NewReader(string(b))
}

// From a folder (file:) a browser starts no worker, and the search needs one: a hidden frame that is spoken to like one.
// From a server the browser's own is kept.
const tell = (target, data) =>
  setTimeout(() => target.dispatchEvent(new MessageEvent("message", { data })));

if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inner = frame.contentWindow;
      const load = (address) =>
        new Promise((done, failed) => {
          const script = this.inner.document.createElement("script");
          script.src = address;
          script.onload = done;
          script.onerror = failed;
          this.inner.document.body.append(script);
        });
      this.inner.postMessage = (data) => tell(this, data);
      this.inner.importScripts = (...urls) =>
        urls.reduce((before, each) => before.then(() => load(each)), Promise.resolve());
      this.ready = load(url);
    }
    postMessage(data) {
      this.ready.then(() => tell(this.inner, data));
    }
    terminate() {}
  };
